/** Every operation by its name, bound to a service: what stands behind the HTTP edge. */
import type { Answer, AskedCall } from '../asked/ask.ts';
import type { Service } from '../service.ts';
import {
  finishAdoption,
  getAdoption,
  leaveAdoption,
  listAdoptions,
  startAdoption,
  undoAdoption,
  verifyAdoption,
} from './adoption.ts';
import { handOver, performAsked } from './asked.ts';
import { decideApproval, getApproval, listApprovals } from './approvals.ts';
import { cancelRotation, pauseRotation, resumeRotation } from './control.ts';
import { decrypt } from './decrypt.ts';
import { callOffDestruction, destroyVersion, getCertificate } from './destroy.ts';
import { encrypt } from './encrypt.ts';
import { listEntries } from './entries.ts';
import { getKey, listKeys } from './keys.ts';
import { match } from './match.ts';
import type { Call, Operation, Result } from './perform.ts';
import { reencrypt } from './reencrypt.ts';
import { rotate } from './rotate.ts';
import { getRotation, listFailures, listRotations } from './rotations.ts';
import { searchTokens } from './search-tokens.ts';
import { waiveFailures } from './waive.ts';
import { whoami } from './whoami.ts';

const operations = {
  encrypt,
  decrypt,
  reencrypt,
  match,
  searchTokens,
  whoami,
  listKeys,
  getKey,
  rotate,
  destroyVersion,
  callOffDestruction,
  getCertificate,
  listRotations,
  getRotation,
  listFailures,
  waiveFailures,
  pauseRotation,
  resumeRotation,
  cancelRotation,
  listAdoptions,
  getAdoption,
  startAdoption,
  verifyAdoption,
  finishAdoption,
  undoAdoption,
  leaveAdoption,
  listApprovals,
  getApproval,
  decideApproval,
  listEntries,
} as const satisfies Record<string, Operation>;

export type BoundOperations = Readonly<Record<keyof typeof operations, (call: Call) => Promise<Result>>>;

/** What a worker does for an api process, and what the log calls it when none took it. */
const workersOwn: Readonly<Partial<Record<keyof typeof operations, string>>> = {
  listKeys: 'keys',
  getKey: 'keys',
  rotate: 'rotate',
  destroyVersion: 'destroy',
  callOffDestruction: 'destroy',
  getCertificate: 'keys',
  listRotations: 'rotations',
  getRotation: 'rotations',
  listFailures: 'rotations',
  waiveFailures: 'waive',
  pauseRotation: 'rotate',
  resumeRotation: 'rotate',
  cancelRotation: 'rotate',
  listAdoptions: 'adoptions',
  getAdoption: 'adoptions',
  startAdoption: 'adopt',
  verifyAdoption: 'adopt',
  finishAdoption: 'adopt',
  undoAdoption: 'decrypt',
  leaveAdoption: 'decrypt',
  decideApproval: 'approve',
};

/** Every operation as this service runs it: an api process hands over what is the workers'. */
export function bindOperations(service: Service): BoundOperations {
  const bound = Object.entries(operations).map(([name, operation]) => {
    const action = service.role === 'api' ? workersOwn[name as keyof typeof operations] : undefined;
    const run = (call: Call) =>
      action === undefined ? operation(service, call) : handOver(service, name, action, call);
    return [name, run];
  });
  return Object.fromEntries(bound) as BoundOperations;
}

/** What a worker does of what api processes ask: nothing but that, whatever they name. */
export function operate(service: Service, call: AskedCall): Promise<Answer> {
  const own = Object.entries(operations).filter(([name]) => Object.hasOwn(workersOwn, name));
  return performAsked(Object.fromEntries(own), service, call);
}
