/** Who may see keys, rotations and what becomes of them: system principals, for all that spans tenants. */
import type { Question } from '../policy/access.ts';
import type { Service } from '../service.ts';

/** Whoever may rotate or destroy the family, or read the audit, may see what state it is in. */
export function questionsAbout(family: string | undefined, service: Service): Question[] {
  const families = family === undefined ? [...service.policy.classes.keys()] : [family];
  return [
    ...families.flatMap((each): Question[] => [
      { action: 'rotate', class: each },
      { action: 'destroy', class: each },
    ]),
    { action: 'audit' },
  ];
}

/** For calls whose class shows in what they find; a class of its own is asked for then. */
export function rotateAnything({ policy }: Service): Question[] {
  return ['*', ...policy.classes.keys()].map((name) => ({ action: 'rotate', class: name }));
}
