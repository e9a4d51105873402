/**
 * The driver matrix: real drivers with their own defaults run one list of scenarios (test/fixtures/matrix), straight
 * against a real Postgres and through a pool, and print what came of each. Each cell (driver, scenario, pool) is the
 * same as straight, or it is not.
 *
 * Through pgweir every cell must be the same; what cannot be is listed below with its reason. With
 * PGWEIR_TABLES=<directory> the table is written to <directory>/drivers.md, and PgBouncer is in it, where it is
 * installed: its cells are only recorded.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { findPgbouncer, pgbouncer, pgbouncerVersion } from '../../bench/contenders.ts';
import { findProgram, run, skip, succeeds } from '../fixtures/drivers/programs.ts';
import { startProxy, withPostgres } from '../fixtures/stack.ts';

/** Fewer servers than each program has clients. */
const SERVERS = 3;
/** Of a session pool: one for each client. */
const SESSIONS = 40;
/** With two processors it takes a minute, with PgBouncer two and a half. */
const RUN_MS = 300_000;
/** Programs at a time. */
const PARALLEL = 2;

/** What cannot be the same through pgweir: 'driver, scenario, mode' and why. */
const known: Record<string, string> = {
  'psql, reconnect, session': 'a database that does not exist: the error has a HINT for those who run the proxy',
  'psql, reconnect, transaction': 'as in session mode',
  'psql, listen, transaction':
    'a notification of its own arrives right behind the answer to NOTIFY, not before it: another connection listens',
  'psql, prepared_view, transaction':
    'the view pg_prepared_statements shows what the server of the moment has, whoever prepared it',
};

interface Driver {
  name: string;
  /** Null: it is not installed. */
  command: [program: string, ...args: string[]] | null;
  packages: string;
}

const file = (name: string) => fileURLToPath(new URL(`../fixtures/matrix/${name}`, import.meta.url));

function inPython(name: string, module: string, script: string): Driver {
  const python = findProgram('python3');
  const isThere = python !== null && succeeds(python, ['-c', `import ${module}`]);
  return { name, command: isThere ? [python, file(script)] : null, packages: `python3-${module}` };
}

const inNode = (name: string, script: string): Driver => ({
  name,
  command: [process.execPath, '--import', 'tsx', file(script)],
  packages: '',
});

function inPhp(name: string, extension: string, script: string): Driver {
  const php = findProgram('php');
  const isThere = php !== null && succeeds(php, ['-r', `exit(extension_loaded('${extension}') ? 0 : 1);`]);
  return { name, command: isThere ? [php, file(script)] : null, packages: 'php-cli php-pgsql' };
}

function inRuby(): Driver {
  const ruby = findProgram('ruby');
  const isThere = ruby !== null && succeeds(ruby, ['-e', 'require "pg"']);
  return { name: 'ruby-pg', command: isThere ? [ruby, file('with_ruby_pg.rb')] : null, packages: 'ruby ruby-pg' };
}

function inPerl(): Driver {
  const perl = findProgram('perl');
  const isThere = perl !== null && succeeds(perl, ['-MDBD::Pg', '-e', '1']);
  return { name: 'DBD::Pg', command: isThere ? [perl, file('with_dbd_pg.pl')] : null, packages: 'libdbd-pg-perl' };
}

/** Compiled once: the compiler takes longer than all scenarios. */
function inJava(): Driver {
  const [jar, java, javac] = ['/usr/share/java/postgresql.jar', findProgram('java'), findProgram('javac')];
  const driver: Driver = { name: 'JDBC', command: null, packages: 'libpostgresql-jdbc-java default-jdk-headless' };
  if (java === null || javac === null || !existsSync(jar)) return driver;
  const folder = mkdtempSync(join(tmpdir(), 'pgweir-matrix-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const { status, stderr } = spawnSync(javac, ['-cp', jar, '-d', folder, file('Matrix.java')], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return { ...driver, command: [java, '-XX:TieredStopAtLevel=1', '-cp', `${jar}:${folder}`, 'Matrix'] };
}

const psql = findProgram('psql');
const drivers: Driver[] = [
  { ...inNode('psql', 'with_psql.ts'), ...(psql === null && { command: null }), packages: 'postgresql-client' },
  inPython('psycopg2', 'psycopg2', 'with_psycopg2.py'),
  inPython('psycopg 3', 'psycopg', 'with_psycopg3.py'),
  inPython('asyncpg', 'asyncpg', 'with_asyncpg.py'),
  inPython('SQLAlchemy', 'sqlalchemy', 'with_sqlalchemy.py'),
  inJava(),
  inRuby(),
  inPhp('PHP pgsql', 'pgsql', 'with_pgsql.php'),
  inPhp('PDO_pgsql', 'pdo_pgsql', 'with_pdo.php'),
  inPerl(),
  inNode('node-postgres', 'with_node_postgres.ts'),
  inNode('postgres.js', 'with_postgres_js.ts'),
  inNode('knex', 'with_knex.ts'),
  inNode('Kysely', 'with_kysely.ts'),
  inNode('Drizzle', 'with_drizzle.ts'),
];

/** Where to connect, and how to end what is there; `bugs` are those that it has counted. */
interface Target {
  port: number;
  bugs(): number;
  stop(): Promise<void>;
}

t.setTimeout(RUN_MS);
const postgres = await withPostgres({ settings: { max_connections: '300' } });
t.after(() => postgres.stop());

const pools: Record<string, () => Promise<Target>> = {};
for (const mode of ['session', 'transaction'] as const) {
  const size = mode === 'session' ? SESSIONS : SERVERS;
  pools[`pgweir ${mode}`] = () => startProxy(postgres.port, { pool: { mode, size, pinnedMax: '100%' } });
}
const tablesFolder = process.env.PGWEIR_TABLES;
const bouncer = tablesFolder === undefined ? null : findPgbouncer(null);
if (bouncer !== null) {
  for (const mode of ['session', 'transaction'] as const) {
    const size = mode === 'session' ? SESSIONS : SERVERS;
    pools[`PgBouncer ${mode}`] = async () => ({
      ...(await pgbouncer(bouncer, postgres, size, { mode, waitSeconds: 3 })),
      bugs: () => 0,
    });
  }
}

/** What a driver has printed: scenarios and their outcomes. */
type Printed = Map<string, string>;
let runs = 0;

async function runDriver({ command, name }: Driver, port: number): Promise<Printed> {
  // Names are of one length, so that tables which are printed have one width.
  const prefix = `m${String(++runs).padStart(3, '0')}_`;
  const env = { PGHOST: '127.0.0.1', PGPORT: `${port}`, PGUSER: 'postgres', PGDATABASE: 'postgres', PREFIX: prefix };
  const [program, ...args] = command!;
  const { stdout, stderr } = await run(program, args, { env });
  const printed: Printed = new Map();
  for (const line of stdout.replaceAll(prefix, 'PREFIX_').split('\n')) {
    if (!line.startsWith('{')) continue; // Some drivers write there on their own account.
    const { scenario, ...outcome } = JSON.parse(line);
    const text = JSON.stringify(outcome.error === undefined ? outcome.result : { error: outcome.error });
    printed.set(scenario, text.replaceAll(`port ${port}`, 'port PORT').replaceAll(`:${port}`, ':PORT'));
  }
  if (printed.size === 0) problems.push(`${name} has printed nothing: ${stderr}`);
  return printed;
}

const NOT_OFFERED = 'not offered';

/** 'same', or what is not. */
function compare(wanted: string, found: string | undefined): string {
  if (found === wanted) return wanted === '"not offered by the driver"' ? NOT_OFFERED : 'same';
  if (found === undefined) return 'no answer within a minute';
  if (found.startsWith('{"error":')) return `error: ${JSON.parse(found).error.replaceAll(/\s+/g, ' ').slice(0, 300)}`;
  let at = 0;
  while (wanted[at] === found[at]) at++;
  const part = (text: string) => text.slice(Math.max(0, at - 60), at + 100);
  return `differs: ${part(found)} instead of ${part(wanted)}`;
}

/** Cells by driver, scenario and pool. */
const cells = new Map<string, Map<string, Map<string, string>>>();
/** What is wrong beyond what cells say. */
const problems: string[] = [];

async function fill(driver: Driver): Promise<void> {
  const wanted = await runDriver(driver, postgres.port);
  const rows = new Map([...wanted.keys()].map((scenario) => [scenario, new Map<string, string>()]));
  cells.set(driver.name, rows);
  for (const [scenario, outcome] of wanted) {
    if (outcome.startsWith('{"error":')) problems.push(`${driver.name}, ${scenario}, without a pool: ${outcome}`);
  }
  for (const [pool, start] of Object.entries(pools)) {
    // Each run has a pool of its own: what one leaves behind must not hinder another.
    const target = await start();
    const found = await runDriver(driver, target.port);
    for (const [scenario, outcome] of wanted) rows.get(scenario)!.set(pool, compare(outcome, found.get(scenario)));
    if (target.bugs() > 0) problems.push(`${driver.name}: ${target.bugs()} bugs were counted in ${pool} mode`);
    await target.stop();
  }
}

function check(name: string): void {
  t.test(name, async (t) => {
    for (const [scenario, row] of cells.get(name)!) {
      for (const [pool, cell] of row) {
        const [software, mode] = pool.split(' ');
        if (software !== 'pgweir') continue;
        const reason = known[`${name}, ${scenario}, ${mode}`];
        if (cell === NOT_OFFERED) continue;
        if (cell !== 'same' && reason !== undefined) t.comment(`${scenario}, ${pool}: ${reason}: ${cell}`);
        else t.equal(cell, 'same', `${scenario}: ${pool}`);
      }
    }
  });
}

/** The table as Markdown: one for each pool, then what is not the same. */
function tables(): string {
  const scenarios = [...new Set([...cells.values()].flatMap((rows) => [...rows.keys()]))];
  const lines = [
    '# Drivers',
    '',
    'Written by test/wire/matrix.test.ts: what each driver prints through a pool, next to what it prints without.',
  ];
  const plain = (text: string) => text.replaceAll('|', '\\|').replaceAll('`', "'");
  for (const pool of Object.keys(pools)) {
    const version = pool.startsWith('PgBouncer') ? ` (${pgbouncerVersion(bouncer!).join('.')})` : '';
    lines.push('', `## ${pool} mode${version}`, '');
    lines.push(`| driver | ${scenarios.join(' | ')} |`, `|---|${scenarios.map(() => '---|').join('')}`);
    const notes: string[] = [];
    for (const driver of names) {
      const rows = cells.get(driver)!;
      const row = scenarios.map((scenario) => {
        const cell = rows.get(scenario)?.get(pool);
        if (cell === undefined) return '';
        if (cell === 'same' || cell === NOT_OFFERED) return cell;
        notes.push(`- ${driver}, ${scenario}: \`${plain(cell)}\``);
        const reason = known[`${driver}, ${scenario}, ${pool.split(' ')[1]}`];
        if (pool.startsWith('pgweir') && reason !== undefined) notes.push(`  (${reason})`);
        return cell.startsWith('differs') ? '**differs**' : '**error**';
      });
      lines.push(`| ${driver} | ${row.join(' | ')} |`);
    }
    if (notes.length > 0) lines.push('', ...notes);
  }
  return `${lines.join('\n')}\n`;
}

const waiting = drivers.filter(({ name, command, packages }) => {
  if (command === null) skip(t, name, packages);
  return command !== null;
});
const names = waiting.map(({ name }) => name);
await Promise.all(
  Array.from({ length: PARALLEL }, async () => {
    for (let driver = waiting.shift(); driver !== undefined; driver = waiting.shift()) await fill(driver);
  }),
);
for (const name of names) check(name);
t.test('every scenario runs without a pool, and no pgweir has counted a bug', async (t) => t.same(problems, []));
if (tablesFolder !== undefined) writeFileSync(join(tablesFolder, 'drivers.md'), tables());
