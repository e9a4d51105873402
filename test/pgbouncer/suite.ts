/**
 * PgBouncer's own tests, against pgweir: how much of a drop-in it is. They stay outside of this repository:
 *
 *     PGBOUNCER_SOURCE=…/pgbouncer node --import tsx test/pgbouncer/suite.ts [test_file …] [-- arguments of pytest]
 *
 * (with PGWEIR_TABLES=FOLDER the table for docs/compatibility.md is written to it) needs Python with pytest, pytest-asyncio, pytest-timeout, pytest-xdist, filelock and psycopg (PYTHON: which one), Postgres, and, as root, a user
 * for it (PGBOUNCER_TEST_USER, else postgres, else nobody). expected.json says which tests fail, and why that is meant.
 *
 * The one idea: what fails is either in expected.json with its reason, or wrong: then this exits with 1.
 */
import { spawnSync } from 'node:child_process';
import {
  chownSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const CHOSEN = [
  'test_prepared',
  'test_copy',
  'test_cancel',
  'test_limits',
  'test_timeouts',
  'test_admin',
  'test_operations',
  'test_no_user',
  'test_no_database',
];
const python = process.env.PYTHON ?? (existsSync('/usr/bin/python3') ? '/usr/bin/python3' : 'python3');
const POSTGRES = '/usr/lib/postgresql';

type Outcome = 'passed' | 'failed' | 'skipped';
interface Result {
  id: string;
  outcome: Outcome;
  why: string;
}

const here = import.meta.dirname;
const source = process.env.PGBOUNCER_SOURCE;
if (source === undefined) exit('PGBOUNCER_SOURCE is to name a checkout of PgBouncer');
const [own, further] = splitAt(process.argv.slice(2), '--');
const files = (own.length === 0 ? CHOSEN : own).map((each) => each.replace(/^.*\/|\.py$/g, ''));
/** Test (`file::name`, or `file::name[parameters]`) → why it is meant to fail. */
const expected = JSON.parse(readFileSync(join(here, 'expected.json'), 'utf8')) as Record<string, string>;

const folder = mkdtempSync(join(tmpdir(), 'pgb-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const results = runTests(prepare(resolve(source)));
report(results);

/** A copy that tests may write into, as a build of it would look. */
function prepare(from: string): string {
  const copy = join(folder, 'src');
  for (const part of ['test', 'include', 'pyproject.toml'])
    cpSync(join(from, part), join(copy, part), { recursive: true });
  mkdirSync(join(copy, 'build'));
  // What TLS_SUPPORT is read from; LDAP is not supported.
  writeFileSync(join(copy, 'build', 'test_config.h'), '#define USUAL_LIBSSL_FOR_TLS 1\n');
  return copy;
}

/** Which version the tests have. */
function psycopg(): string {
  const { stdout } = spawnSync(python, ['-c', 'import psycopg; print(psycopg.__version__)'], { encoding: 'utf8' });
  return stdout.trim();
}

function runTests(copy: string): Result[] {
  const xml = join(folder, 'report.xml');
  const user = process.getuid?.() === 0 ? idsOf(process.env.PGBOUNCER_TEST_USER) : null;
  if (user !== null) give(folder, user);
  const { status, error } = spawnSync(
    python,
    [
      ...[
        '-m',
        'pytest',
        '-q',
        '--tb=native',
        '--show-capture=no',
        '-p',
        'no:cacheprovider',
        `--basetemp=${join(folder, 't')}`,
      ],
      ...[`--junitxml=${xml}`, '-n', '3', ...further, ...files.map((each) => join(copy, 'test', `${each}.py`))],
    ],
    {
      cwd: copy,
      stdio: ['ignore', 'inherit', 'inherit'],
      ...user,
      env: {
        ...process.env,
        ...{ HOME: folder, TMPDIR: folder, BOUNCER_EXE: compile(), LANG: 'C.UTF-8' },
        PATH: [...postgresPath(), process.env.PATH].join(':'),
      },
    },
  );
  if (error !== undefined || !existsSync(xml)) exit(`pytest did not run: ${error?.message ?? `status ${status}`}`);
  const text = readFileSync(xml, 'utf8');
  if (process.env.REPORT !== undefined) writeFileSync(process.env.REPORT, text);
  return resultsIn(text);
}

/** As TypeScript each start would take seconds; the tests start it a hundred times. Gives what is to be started. */
function compile(): string {
  const root = join(here, '../..');
  const js = join(folder, 'js');
  const config = {
    extends: join(root, 'tsconfig.json'),
    compilerOptions: {
      ...{ noEmit: false, allowImportingTsExtensions: false, rootDir: root, outDir: js },
      typeRoots: [join(root, 'node_modules/@types')],
    },
    include: [],
    files: ['test/pgbouncer/bouncer.ts', 'src/sql/parser-worker.ts', 'src/server/changes-worker.ts'].map((each) =>
      join(root, each),
    ),
  };
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config));
  const tsc = join(root, 'node_modules/typescript/bin/tsc');
  const { status } = spawnSync(process.execPath, [tsc, '-p', folder], { stdio: 'inherit' });
  if (status !== 0) exit('it does not compile');
  symlinkSync(join(root, 'node_modules'), join(js, 'node_modules'));
  cpSync(join(root, 'package.json'), join(js, 'package.json'));
  const program = join(js, 'test/pgbouncer/pgbouncer');
  cpSync(join(here, 'pgbouncer'), program);
  return program;
}

/** The newest Postgres of Debian, which is not on PATH there. */
function postgresPath(): string[] {
  if (!existsSync(POSTGRES)) return [];
  const versions = readdirSync(POSTGRES).sort((a, b) => Number(b) - Number(a));
  return versions.slice(0, 1).map((each) => join(POSTGRES, each, 'bin'));
}

/** Postgres does not run as root. */
function idsOf(wanted: string | undefined): { uid: number; gid: number } {
  for (const name of wanted === undefined ? ['postgres', 'nobody'] : [wanted]) {
    const [uid, gid] = ['-u', '-g'].map((flag) =>
      Number(spawnSync('id', [flag, name], { encoding: 'utf8' }).stdout || Number.NaN),
    );
    if (uid! > 0) return { uid: uid!, gid: gid! };
  }
  exit('Postgres does not run as root: PGBOUNCER_TEST_USER is to name a user');
}

function give(path: string, { uid, gid }: { uid: number; gid: number }): void {
  chownSync(path, uid, gid);
  for (const each of readdirSync(path, { recursive: true, encoding: 'utf8' })) chownSync(join(path, each), uid, gid);
}

/** Of a JUnit report. */
function resultsIn(xml: string): Result[] {
  return [...xml.matchAll(/<testcase classname="([^"]+)" name="([^"]+)"[^>]*?(?:\/>|>(.*?)<\/testcase>)/gs)].map(
    ([, place, name, inner = '']) => {
      const [, tag, message = ''] = /<(failure|error|skipped)[^>]*?message="([^"]*)"/.exec(inner) ?? [];
      const outcome = tag === undefined ? 'passed' : tag === 'skipped' ? 'skipped' : 'failed';
      return { id: `${place!.split('.').at(-1)}.py::${unescaped(name!)}`, outcome, why: unescaped(message) };
    },
  );
}

function unescaped(text: string): string {
  const entities: Record<string, string> = { lt: '<', gt: '>', quot: '"', apos: "'", amp: '&' };
  return text
    .replaceAll(/&#(?:x([0-9a-fA-F]+)|(\d+));/g, (_, hex, decimal) =>
      String.fromCodePoint(hex ? Number.parseInt(hex, 16) : Number(decimal)),
    )
    .replaceAll(/&(\w+);/g, (_, name: string) => entities[name] ?? '');
}

function report(all: readonly Result[]): void {
  const reasonOf = ({ id }: Result) => expected[id] ?? expected[id.replace(/\[.*$/s, '')];
  const of = (outcome: Outcome) => all.filter((each) => each.outcome === outcome);
  const unexpected = of('failed').filter((each) => reasonOf(each) === undefined);
  const better = of('passed').filter((each) => expected[each.id] !== undefined);
  console.log('');
  const counts = files.map((file) => {
    const ran = all.filter(({ id, outcome }) => id.startsWith(`${file}.py::`) && outcome !== 'skipped');
    return { file, passed: ran.filter(({ outcome }) => outcome === 'passed').length, ran: ran.length };
  });
  for (const { file, passed, ran } of counts) console.log(`${file.padEnd(24)} ${passed} of ${ran}`);
  for (const { id, why } of unexpected)
    console.log(`unexpected: ${id}\n    ${why.split('\n').slice(0, 4).join(' | ')}`);
  for (const { id } of better) console.log(`passes, and is in expected.json: ${id}`);
  const chosen = all.length - of('skipped').length;
  console.log(
    `${of('passed').length} passed of ${chosen} chosen, ${of('failed').length - unexpected.length} expected differences, ${unexpected.length} unexpected (${of('skipped').length} skipped by themselves)`,
  );
  if (process.env.PGWEIR_TABLES !== undefined) {
    const rows = counts.map(({ file, passed, ran }) => `| ${file} | ${passed} of ${ran} |`);
    const reasons = of('failed').map((each) => `- \`${each.id}\`: ${reasonOf(each) ?? 'not expected'}`);
    const page = `With psycopg ${psycopg()}.\n\n| file | passed |\n|---|---|\n${rows.join('\n')}\n| all | ${of('passed').length} of ${chosen} |\n\n${reasons.join('\n')}\n`;
    writeFileSync(join(process.env.PGWEIR_TABLES, 'pgbouncer.md'), page);
  }
  process.exitCode = unexpected.length === 0 && chosen > 0 ? 0 : 1;
}

function splitAt(words: readonly string[], mark: string): [string[], string[]] {
  const at = words.indexOf(mark);
  return at === -1 ? [[...words], []] : [words.slice(0, at), words.slice(at + 1)];
}

function exit(line: string): never {
  console.error(line);
  process.exit(2);
}
