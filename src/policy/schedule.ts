/** Dates plus ISO 8601 durations, in UTC, and at which hours rows are worked on. Pure. */

export const durationPattern =
  /^P(?=\d|T\d)(?:(\d{1,4})Y)?(?:(\d{1,4})M)?(?:(\d{1,4})W)?(?:(\d{1,5})D)?(?:T(?=\d)(?:(\d{1,6})H)?(?:(\d{1,6})M)?(?:(\d{1,7})S)?)?$/;

/** `from` plus `iso` ("P3M", "P1D", "PT30M"). A month's end stays a month's end: 31 January + P1M is the last of February. */
export function addDuration(from: Date, iso: string): Date {
  const match = durationPattern.exec(iso);
  if (match === null) throw new RangeError('not an ISO 8601 duration');
  const [years, months, weeks, days, hours, minutes, seconds] = match.slice(1).map((part) => Number(part ?? 0));
  const next = new Date(from);
  const day = next.getUTCDate();
  next.setUTCDate(1);
  next.setUTCMonth(next.getUTCMonth() + years! * 12 + months!);
  const lastDay = new Date(Date.UTC(next.getUTCFullYear(), next.getUTCMonth() + 1, 0)).getUTCDate();
  next.setUTCDate(Math.min(day, lastDay));
  const clock = ((weeks! * 7 + days!) * 24 + hours!) * 3600 + minutes! * 60 + seconds!;
  return new Date(next.getTime() + clock * 1000);
}

/** Whether the runtime knows an IANA time zone of this name. */
export function isTimeZone(name: string): boolean {
  try {
    new Intl.DateTimeFormat('en', { timeZone: name });
    return true;
  } catch {
    return false;
  }
}

/** Times of day, `HH:MM`, on the clocks of a zone; `to` before `from` is the next day, the same time the whole day. */
export interface Hours {
  readonly from: string;
  readonly to: string;
  readonly zone: string;
}

/** Whether `at` lies within the hours, by the clock on a wall there: a change to summer time moves them along. */
export function isWithin({ from, to, zone }: Hours, at: Date): boolean {
  const clock = new Intl.DateTimeFormat('en-GB', {
    timeZone: zone,
    hour: '2-digit',
    minute: '2-digit',
    hourCycle: 'h23',
  });
  const now = clock.format(at);
  return from < to ? from <= now && now < to : now >= from || now < to;
}
