/**
 * The source of a request: the address that it came from. An IPv6 network of /64, which one machine may have to itself, is
 * one source. What a header such as X-Forwarded-For says is not looked at: anybody can send it.
 */
import { isIPv6 } from 'node:net';

const mappedPattern = /^::ffff:(\d{1,3}(?:\.\d{1,3}){3})$/i;

/** `203.0.113.7` or `2001:db8:0:1::/64`; `unknown` when the socket has no address any more. */
export function sourceOf(address: string | undefined): string {
  if (address === undefined) return 'unknown';
  const mapped = mappedPattern.exec(address)?.[1];
  if (mapped !== undefined) return mapped;
  const [text = ''] = address.split('%'); // without the interface of a link-local address
  if (!isIPv6(text)) return text;
  const [head = '', tail] = text.split('::');
  const before = head === '' ? [] : head.split(':');
  const after = tail === undefined || tail === '' ? [] : tail.split(':');
  const zeros = tail === undefined ? 0 : 8 - before.length - after.length - (text.includes('.') ? 1 : 0);
  const groups = [...before, ...Array.from({ length: zeros }, () => '0'), ...after];
  const network = groups.slice(0, 4).map((group) => Number.parseInt(group, 16).toString(16));
  return `${network.join(':')}::/64`;
}
