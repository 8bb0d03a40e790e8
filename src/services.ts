/**
 * The services of one process: one a duty, each with the database login of that duty. Where one login has both duties, as
 * on a laptop without roles, one service does both.
 */
import type { Service } from './service.ts';

export interface Services {
  /** Absent in a worker, which faces nobody. */
  readonly api?: Service;
  /** Absent in a process that faces agents and does nothing else. */
  readonly worker?: Service;
  readonly all: readonly [Service, ...Service[]];
}
