import assert from 'node:assert/strict';
import { upsertMirror } from '../../src/keys/mirror-store.ts';
import { readRetirementFigures, type RetirementFigure } from '../../src/retirement/figures.ts';
import { setUndeclared } from '../../src/retirement/retire-store.ts';
import { watchDone } from '../../src/retirement/watch.ts';
import { policy as mirrored } from '../keys/mirrored.ts';
import { adopt, fill, openBench, rotate, type Bench } from '../rotation/support.ts';
import { agree, carryOn, policyOf } from './retiring.ts';

describe('retirement/figures', () => {
  let bench: Bench;
  before(async () => {
    bench = await openBench({ policy: policyOf() });
    await fill(bench.owner, 3, (id) => `536-22-${id}`);
    await adopt(bench.service);
  });
  after(() => bench.close());

  const read = (policy = bench.service.policy) => readRetirementFigures({ ...bench.service, policy });
  const valueOf = (figures: readonly RetirementFigure[], name: string, labels: object) =>
    figures.find((each) => each.name === name && Object.entries(labels).every(([k, v]) => each.labels[k] === v))?.value;

  it('show the guards that stand, and how far versions are on their way out', async () => {
    const guard = { class: 'ssn', table: 'demo.employees', column: 'ssn' };
    const states = async () => {
      const figures = await read();
      return ['waiting', 'destroyable', 'destroying', 'held'].map((state) =>
        valueOf(figures, 'retiring_versions', { class: 'ssn', state }),
      );
    };
    assert.equal(valueOf(await read(), 'guard_version', guard), 0);
    assert.deepEqual(await states(), [0, 0, 0, 0]);
    await rotate(bench, 'ssn');
    assert.deepEqual(await states(), [1, 0, 0, 0]);
    await watchDone(bench.service, { now: true });
    assert.equal(valueOf(await read(), 'guard_version', guard), 2);
    assert.deepEqual(await states(), [0, 1, 0, 0]);
    const found = [{ table: 'public.mail', column: 'body' }];
    await setUndeclared(bench.service.pool, 'ssn', 1, { searched: true, found, unsearched: [] });
    assert.equal(valueOf(await read(), 'undeclared_columns', { class: 'ssn' }), 1);
    await bench.owner.query('update fieldkeep.watches set undeclared = null');
    const id = await agree(bench.service, bench.owner);
    assert.deepEqual(await states(), [0, 0, 1, 0]);
    await bench.owner.query(`update fieldkeep.destructions set problem = 'Vault is away.'`);
    assert.deepEqual(await states(), [0, 0, 0, 1]);
    await carryOn(bench.service, id);
    assert.deepEqual(await states(), [0, 0, 0, 0]);
  });

  it('show how far mirrors are behind, and that one fails', async () => {
    assert.equal(
      valueOf(await read(mirrored), 'mirror_missing_keys', { target: 'hr' }),
      undefined,
      'nobody has looked',
    );
    await upsertMirror(bench.service.pool, { target: 'hr', behind: 3, unknown: ['ssn'], problem: 'It is away.' });
    const figures = await read(mirrored);
    const names = ['mirror_missing_keys', 'mirror_unknown_families', 'mirror_failing'];
    assert.deepEqual(
      names.map((name) => valueOf(figures, name, { target: 'hr' })),
      [3, 1, 1],
    );
  });
});
