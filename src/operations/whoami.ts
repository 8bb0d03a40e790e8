/** GET /v1/whoami: who the caller is to us, and what that may do. */
import { effectiveGrants } from '../policy/access.ts';
import { performCall } from './call.ts';
import type { Operation } from './perform.ts';

export const whoami: Operation = (service, call) =>
  performCall(service, call, { action: 'whoami', questions: [], ofTenant: true }, () => {
    const { agent, person, tenant, system } = call.principal;
    const grants = effectiveGrants(service.policy, call.principal);
    return { body: { principal: { system, agent, person }, tenant, grants } };
  });
