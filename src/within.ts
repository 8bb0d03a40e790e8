/** A limit for what may never end. */

/** What `work` comes to, or undefined after `ms`; it may go on then, and what it still throws is nobody's. */
export async function within<T>(ms: number, work: Promise<T> | T): Promise<T | undefined> {
  const late = Promise.withResolvers<undefined>();
  const timer = setTimeout(late.resolve, ms, undefined);
  const pending = Promise.resolve(work);
  pending.catch(() => undefined);
  try {
    return await Promise.race([pending, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}
