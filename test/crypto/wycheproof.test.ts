/** C2SP Wycheproof: what others found implementations to get wrong, through the functions that envelopes are made with. */
import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { decryptGcm, encryptGcm } from '../../src/crypto/aead.ts';
import { DataKey } from '../../src/crypto/data-key.ts';
import { findSharedVectors, hex, refuses } from './support.ts';

interface AeadFile {
  testGroups: {
    keySize: number;
    ivSize: number;
    tagSize: number;
    tests: {
      tcId: number;
      key: string;
      iv: string;
      aad: string;
      msg: string;
      ct: string;
      tag: string;
      result: string;
    }[];
  }[];
}
interface MacFile {
  testGroups: {
    keySize: number;
    tagSize: number;
    tests: { tcId: number; key: string; msg: string; tag: string; result: string }[];
  }[];
}

describe('crypto: Wycheproof', () => {
  it('AES-256-GCM', function () {
    const file = findSharedVectors<AeadFile>('wycheproof/aes_gcm_test.json');
    if (file === undefined) this.skip(); // the vectors are not beside this checkout
    const groups = file.testGroups.filter((each) => each.keySize === 256 && each.ivSize === 96 && each.tagSize === 128);
    const tests = groups.flatMap((each) => each.tests);
    assert.equal(tests.length, 66);
    for (const { tcId, result, ...test } of tests) {
      const [key, iv, aad, msg, ct, tag] = [test.key, test.iv, test.aad, test.msg, test.ct, test.tag].map(hex);
      if (result === 'valid') {
        assert.deepEqual(encryptGcm(key!, iv!, aad!, msg!), { ciphertext: ct!, tag: tag! }, `${tcId}`);
        assert.deepEqual(decryptGcm(key!, iv!, aad!, ct!, tag!), msg!, `${tcId}`);
      } else {
        refuses(() => decryptGcm(key!, iv!, aad!, ct!, tag!), 'decryption_failed');
      }
    }
  });

  it('HMAC-SHA-512', function () {
    const file = findSharedVectors<MacFile>('wycheproof/hmac_sha512_test.json');
    if (file === undefined) this.skip(); // the vectors are not beside this checkout
    let ours = 0;
    for (const { keySize, tagSize, tests } of file.testGroups) {
      for (const { tcId, key, msg, tag, result } of tests) {
        const made =
          keySize === 512
            ? DataKey.from(hex(key)).hmac(hex(msg))
            : createHmac('sha512', hex(key)).update(hex(msg)).digest();
        if (keySize === 512) ours += 1;
        assert.equal(made.toString('hex').slice(0, tagSize / 4) === tag, result === 'valid', `${tcId}`);
      }
    }
    assert.ok(ours > 50, `${ours} through a data key`);
  });
});
