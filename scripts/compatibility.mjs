/**
 * Makes docs/compatibility.md of what the tests have written: `npm run compatibility` runs them, PgBouncer beside, and PgBouncer's own
 * tests where PGBOUNCER_SOURCE names a checkout of it. Without that the part of the page before is kept.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const PAGE = 'docs/compatibility.md';
const given = process.argv[2];
const folder = given ?? mkdtempSync(join(tmpdir(), 'pgweir-tables-'));
const tests = ['test/wire/features.test.ts', 'test/wire/matrix.test.ts'];
if (process.env.PGBOUNCER_SOURCE !== undefined) tests.push('test/pgbouncer/suite.ts');
if (given === undefined)
  for (const test of tests) {
    const env = { ...process.env, PGWEIR_TABLES: folder };
    spawnSync(process.execPath, ['--import', 'tsx', test], { env, stdio: 'inherit' });
  }

const before = existsSync(PAGE) ? readFileSync(PAGE, 'utf8') : '';

/** What a test has written, without its own heading; or what the page has had there. */
function part(name) {
  const marks = [`<!-- ${name} -->`, `<!-- end of ${name} -->`];
  const file = join(folder, `${name}.md`);
  const old = before.includes(marks[0]) ? before.split(marks[0])[1].split(marks[1])[0].trim() : '';
  const text = existsSync(file) ? readFileSync(file, 'utf8').trim() : old;
  return `${marks[0]}\n\n${text.replace(/^# .*\n+/, '').replaceAll(/^## /gm, '### ')}\n\n${marks[1]}`;
}

writeFileSync(
  PAGE,
  `# Compatibility

Written by the tests (\`npm run compatibility\`): every cell has been run. PgBouncer is the one that is installed beside, which may be older
than today's; its cells are recorded as they came, with its defaults. What is not the same through pgweir has its reason.

## Features

${part('features')}

## Drivers

Each driver with its own defaults; eight clients and more before three servers in transaction mode, a server for each in session mode. "same" is: the
same output as straight to Postgres.

${part('drivers')}

## PgBouncer's own tests

Its pytest files for prepared statements, COPY, cancel, limits, timeouts, the console, operations, and users and databases that do not exist
(1.25, of July 2026), run against pgweir by a shim that takes the place of its executable (test/pgbouncer). From psycopg 3.2.6 on, six more do not pass: they expect the
class of error that PgBouncer's 08P01 is, where pgweir says Postgres' own SQLSTATE for a transaction that takes too long (25P03, 25P04). What does
not pass, and why:

${part('pgbouncer')}
`,
);
if (given === undefined) rmSync(folder, { recursive: true, force: true });
