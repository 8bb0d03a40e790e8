/**
 * People who do not exist, with data that a real system would hold: social security numbers that are valid by the rules
 * since 2011, IBANs of several countries with right check digits, salaries on a log-normal curve, and what real tables
 * have too: nulls, empty strings, spaces, dashes, names in many scripts.
 */
import { randomInt } from 'node:crypto';

export interface Person {
  readonly id: number;
  readonly tenant: string;
  readonly name: string;
  readonly ssn: string | null;
  readonly bank: string | null;
  readonly salary: string | null;
}

const firstNames = [
  'Ana',
  'Bjørn',
  'Chloé',
  'Đặng',
  'Ełżbieta',
  'Fatima',
  'Γιώργος',
  'Hüseyin',
  'Иван',
  'José',
  '健',
  'Łukasz',
  'מיכל',
  'Ngozi',
  'Öykü',
  'Priya',
  'Renée',
  'Søren',
  '수진',
  'Zoë',
  '👩‍🌾 Ida',
];
const lastNames = [
  "O'Brien",
  'van der Berg',
  'García Márquez',
  'Müller-Lüdenscheidt',
  'Nakamura 中村',
  'Smith',
  'Åkesson',
  'D’Angelo',
  'Nguyễn',
  'Okonkwo',
  'Петров',
  'Jones Jr.',
];

function digits(n: number): string {
  return Array.from({ length: n }, () => randomInt(10)).join('');
}

function letters(n: number): string {
  return Array.from({ length: n }, () => String.fromCharCode(65 + randomInt(26))).join('');
}

function pick<T>(list: readonly T[]): T {
  return list[randomInt(list.length)]!;
}

/** Area 001-899 without 666, group 01-99, serial 0001-9999. */
export function makeSsn(): string {
  let area = randomInt(1, 900);
  if (area === 666) area = 665;
  const parts = [
    String(area).padStart(3, '0'),
    String(randomInt(1, 100)).padStart(2, '0'),
    String(randomInt(1, 10_000)).padStart(4, '0'),
  ];
  return parts.join(pick(['-', '-', '-', '', ' ']));
}

/** ISO 7064 mod 97-10 over the rearranged text, letters as 10 to 35. */
function ibanCheckDigits(country: string, account: string): string {
  const numeric = [...`${account}${country}00`].map((c) => parseInt(c, 36).toString()).join('');
  return String(98n - (BigInt(numeric) % 97n)).padStart(2, '0');
}

const accounts: Readonly<Record<string, () => string>> = {
  DE: () => digits(18),
  GB: () => letters(4) + digits(14),
  FR: () => digits(10) + letters(1) + digits(12),
  NL: () => letters(4) + digits(10),
  ES: () => digits(20),
  NO: () => digits(11),
  MT: () => letters(4) + digits(5) + letters(2) + digits(16),
};

/** An IBAN, one in four in the paper form with a space after every four characters. */
function makeIban(): string {
  const country = pick(Object.keys(accounts));
  const account = accounts[country]!();
  const iban = `${country}${ibanCheckDigits(country, account)}${account}`;
  return randomInt(4) === 0 ? iban.replace(/(.{4})(?=.)/g, '$1 ') : iban;
}

/** Log-normal around a median of 62,000 a year; one in ten with cents. */
export function makeSalary(): string {
  const u = (randomInt(1_000_000) + 1) / 1_000_001;
  const normal = Math.sqrt(-2 * Math.log(u)) * Math.cos(2 * Math.PI * Math.random());
  const salary = 62_000 * Math.exp(0.45 * normal);
  return randomInt(10) === 0 ? salary.toFixed(2) : String(Math.round(salary / 100) * 100);
}

function sometimesMissing(make: () => string): string | null {
  const dice = randomInt(1000);
  if (dice < 15) return null;
  return dice < 20 ? '' : make();
}

/** Row `id` of the demo table; one person in five works for the second tenant. The first row is always complete. */
export function makePerson(id: number): Person {
  const complete = id === 1;
  return {
    id,
    tenant: id % 5 === 0 ? 'globex' : 'acme',
    name: `${pick(firstNames)} ${pick(lastNames)}`,
    ssn: complete ? '536-22-1234' : sometimesMissing(makeSsn),
    bank: complete ? 'GB29 NWBK 6016 1331 9268 19' : sometimesMissing(makeIban),
    salary: complete ? '61500' : sometimesMissing(makeSalary),
  };
}
