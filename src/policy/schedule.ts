/** When the next rotation is due: a date plus an ISO 8601 duration, in UTC. Pure. */

export const durationPattern =
  /^P(?=\d|T\d)(?:(\d{1,4})Y)?(?:(\d{1,4})M)?(?:(\d{1,4})W)?(?:(\d{1,5})D)?(?:T(?=\d)(?:(\d{1,6})H)?(?:(\d{1,6})M)?(?:(\d{1,7})S)?)?$/;

/** `from` plus `iso` ("P3M", "P1D", "PT30M"). A month's end stays a month's end: 31 January + P1M is the last of February. */
export function nextRotation(from: Date, iso: string): Date {
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
