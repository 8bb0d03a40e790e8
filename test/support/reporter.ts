/** Mocha's own report, and as its last line the totals: `412 passed, 0 failed, 3 skipped`. */
import Mocha from 'mocha';

export default class Totals extends Mocha.reporters.Spec {
  override epilogue(): void {
    super.epilogue();
    const { passes, failures, pending } = this.stats;
    console.log(`${passes} passed, ${failures} failed${pending > 0 ? `, ${pending} skipped` : ''}`);
  }
}
