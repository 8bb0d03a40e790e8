/** Every operation by its name, bound to a service: what stands behind the HTTP edge. */
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

export function bindOperations(service: Service): BoundOperations {
  const bound = Object.entries(operations).map(([name, operation]) => [name, (call: Call) => operation(service, call)]);
  return Object.fromEntries(bound) as BoundOperations;
}
