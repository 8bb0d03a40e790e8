import assert from 'node:assert/strict';
import { readFigures, type Figure } from '../../src/rotation/figures.ts';
import { advance } from '../../src/rotation/run.ts';
import { startAdoption } from '../../src/rotation/start.ts';
import { drive, fill, isSettled, openBench, type Bench } from './support.ts';

describe('rotation/figures', () => {
  let bench: Bench;
  before(async () => {
    bench = await openBench();
  });
  after(() => bench.close());

  const valueOf = (figures: readonly Figure[], name: string, labels: object = {}) =>
    figures.find((each) => each.name === name && Object.entries(labels).every(([k, v]) => each.labels[k] === v))?.value;

  it('show how far a run is, and when the next one is due', async () => {
    await fill(bench.owner, 50, (id) => `536-22-${id}`);
    const id = (await startAdoption(bench.service, true))!;
    await advance(bench.service, id);
    const { pool, keyring } = bench.service;
    const figures = await readFigures(pool, keyring.state);
    assert.equal(valueOf(figures, 'rotation_phase', { run: 'adoption', phase: 're-encrypting' }), 1);
    const place = { run: 'adoption', table: 'demo.employees', column: 'ssn' };
    assert.equal(valueOf(figures, 'rotation_values', { ...place, state: 'left' }), 50);
    assert.equal(valueOf(figures, 'rotation_values', { ...place, state: 'done' }), 0);
    assert.equal(valueOf(figures, 'rotation_throttled', { run: 'adoption' }), 0);
    const due = valueOf(figures, 'rotation_next_seconds', { run: 'bank' })!;
    assert.ok(due > 80 * 86_400 && due < 100 * 86_400, `${due} s`);
    await drive(bench.service, id, isSettled);
    assert.equal(valueOf(await readFigures(pool, keyring.state), 'rotation_phase'), undefined, 'nothing is under way');
  });
});
