/**
 * The route table: one line a route. `action` is what the audit log calls an attempt that is refused before it reaches
 * its operation. The most frequent calls stand first, because Express looks through routes in order.
 */
import type { BoundOperations } from '../operations/all.ts';
import * as a from './answers.ts';
import * as s from './schemas.ts';

export type OperationName = keyof BoundOperations;

export interface Route {
  readonly method: 'get' | 'post';
  readonly path: string;
  readonly operation: OperationName;
  readonly action: string;
  /** What comes in: a body for POST, query parameters for GET. */
  readonly body?: s.BodySchema;
  readonly query: s.QuerySchema;
  readonly answer: a.AnswerSchema;
  /** Other people may have to agree first: the answer is then 202, and `Approval-Id` names what they agreed to. */
  readonly approval?: boolean;
}

const post = (
  path: string,
  operation: OperationName,
  action: string,
  body: s.BodySchema,
  answer: a.AnswerSchema,
): Route => ({ method: 'post', path, operation, action, body, query: s.noQuery, answer });
const get = (
  path: string,
  operation: OperationName,
  action: string,
  query: s.QuerySchema,
  answer: a.AnswerSchema,
): Route => ({ method: 'get', path, operation, action, query, answer });

export const routes: readonly Route[] = [
  post('/v1/decrypt', 'decrypt', 'decrypt', s.decryptBody, a.decryptAnswer),
  post('/v1/encrypt', 'encrypt', 'encrypt', s.encryptBody, a.encryptAnswer),
  post('/v1/match', 'match', 'match', s.matchBody, a.matchAnswer),
  post('/v1/search-tokens', 'searchTokens', 'search', s.searchTokensBody, a.searchTokensAnswer),
  post('/v1/reencrypt', 'reencrypt', 'reencrypt', s.reencryptBody, a.reencryptAnswer),
  get('/v1/whoami', 'whoami', 'whoami', s.noQuery, a.whoamiAnswer),
  get('/v1/keys', 'listKeys', 'keys', s.pageQuery, a.keysAnswer),
  get('/v1/keys/:family', 'getKey', 'keys', s.noQuery, a.keyAnswer),
  post('/v1/keys/:family/rotate', 'rotate', 'rotate', s.rotateBody, a.rotationAnswer),
  {
    ...post('/v1/keys/:family/versions/:version/destroy', 'destroyVersion', 'destroy', s.destroyBody, a.destroyAnswer),
    approval: true,
  },
  post(
    '/v1/keys/:family/versions/:version/destroy/call-off',
    'callOffDestruction',
    'destroy',
    s.callOffBody,
    a.destructionAnswer,
  ),
  get('/v1/keys/:family/versions/:version/certificate', 'getCertificate', 'keys', s.noQuery, a.certificateAnswer),
  get('/v1/rotations', 'listRotations', 'rotations', s.rotationsQuery, a.rotationsAnswer),
  get('/v1/rotations/:id', 'getRotation', 'rotations', s.noQuery, a.rotationAnswer),
  get('/v1/rotations/:id/failures', 'listFailures', 'rotations', s.pageQuery, a.failuresAnswer),
  {
    ...post('/v1/rotations/:id/failures/waive', 'waiveFailures', 'waive', s.waiveBody, a.waiverAnswer),
    approval: true,
  },
  post('/v1/rotations/:id/pause', 'pauseRotation', 'rotate', s.controlBody, a.rotationAnswer),
  post('/v1/rotations/:id/resume', 'resumeRotation', 'rotate', s.controlBody, a.rotationAnswer),
  post('/v1/rotations/:id/cancel', 'cancelRotation', 'rotate', s.controlBody, a.rotationAnswer),
  get('/v1/adoptions', 'listAdoptions', 'adoptions', s.pageQuery, a.adoptionsAnswer),
  get('/v1/adoptions/:column', 'getAdoption', 'adoptions', s.noQuery, a.adoptionAnswer),
  post('/v1/adoptions/:column/start', 'startAdoption', 'adopt', s.controlBody, a.adoptionAnswer),
  post('/v1/adoptions/:column/verify', 'verifyAdoption', 'adopt', s.controlBody, a.rotationAnswer),
  post('/v1/adoptions/:column/finish', 'finishAdoption', 'adopt', s.controlBody, a.rotationAnswer),
  {
    ...post('/v1/adoptions/:column/undo', 'undoAdoption', 'decrypt', s.undoBody, a.rotationAnswer),
    approval: true,
  },
  post('/v1/adoptions/:column/leave', 'leaveAdoption', 'decrypt', s.leaveBody, a.rotationAnswer),
  get('/v1/approvals', 'listApprovals', 'approvals', s.pageQuery, a.approvalsAnswer),
  get('/v1/approvals/:id', 'getApproval', 'approvals', s.noQuery, a.approvalAnswer),
  post('/v1/approvals/:id/decisions', 'decideApproval', 'approve', s.decisionBody, a.approvalAnswer),
  get('/v1/audit/entries', 'listEntries', 'audit', s.entriesQuery, a.entriesAnswer),
  // here follow: audit export, checkpoint and proofs
];
