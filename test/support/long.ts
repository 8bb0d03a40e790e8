/**
 * Suites that break every write, or set every setting, take minutes. CI runs them (.ci/run sets FIELDKEEP_LONG_TESTS=1); a plain
 * `npm test`, which has to stay short, skips them and says so.
 */
import { describe, it } from 'mocha';

const runs = process.env['FIELDKEEP_LONG_TESTS'] === '1';
let told = false;

function tell(): void {
  if (runs || told) return;
  told = true;
  process.stderr.write('SKIPPED: long tests. FIELDKEEP_LONG_TESTS=1 npm test runs them, as CI does.\n');
}

/** `describe` of a suite that takes long. */
export const describeLong = (name: string, body: () => void): void => {
  tell();
  (runs ? describe : describe.skip)(name, body);
};

/** `it` of a test that takes long, or of one of many that do together. */
export const itLong = (name: string, body: () => Promise<void>): void => {
  tell();
  (runs ? it : it.skip)(name, body);
};
