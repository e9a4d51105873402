/** guard/classes: which class a request belongs to. */
import t from 'tap';
import { parseConfig } from '../../src/config/load.ts';
import { Classes, type ClientTraits, type StatementTraits } from '../../src/guard/classes.ts';
import { Parser } from '../../src/sql/parser.ts';
import { Judge } from '../../src/sql/verdict.ts';
import { systemClock } from '../../src/util/clock.ts';

function classes(yaml: string): Classes {
  const loaded = parseConfig(
    `auth: { method: trust }\ndatabases: { a: { hosts: ['h:1'] } }\nclasses:\n${yaml}`,
    'test',
    {},
  );
  if (!loaded.ok) throw new Error(loaded.problems.join());
  return new Classes(loaded.config.classes);
}

const someone: ClientTraits = { user: 'u', database: 'd', application: 'app', address: '10.1.2.3', wanted: '' };

function nameOf(
  all: Classes,
  client: Partial<ClientTraits>,
  tags: Record<string, string> | null = null,
  more: Partial<StatementTraits> = {},
): string {
  const statement = {
    tags: tags === null ? null : new Map(Object.entries(tags)),
    number: 0,
    nature: null,
    isUpkeep: false,
  };
  return all.classOf(all.narrow({ ...someone, ...client }), { ...statement, ...more }, true).name;
}

t.test('the first match wins, all keys of a match must hold, and the rest is normal', async (t) => {
  const all = classes(`
  - { name: api, priority: critical, match: [{ application: 'api-*', address: 10.0.0.0/8 }, { user: api }] }
  - { name: rest, priority: batch, match: [{ database: d }] }`);
  t.equal(nameOf(all, { application: 'api-1' }), 'api');
  t.equal(nameOf(all, { application: 'api-1', address: '11.0.0.1' }), 'rest');
  t.equal(nameOf(all, { application: 'api-1', address: undefined }), 'rest', 'a Unix socket has no address');
  t.equal(nameOf(all, { application: 'api-1', address: '::ffff:10.0.0.9' }), 'api', 'IPv4 within IPv6');
  t.equal(nameOf(all, { user: 'api', database: 'x' }), 'api');
  t.equal(nameOf(all, { database: 'x', application: 'xapi-1' }), 'normal');
});

t.test('patterns mean what they say, and nothing else', async (t) => {
  const all = classes(`
  - { name: dots, match: [{ application: 'a.b*c' }] }
  - { name: six, match: [{ address: 'fd00::/8' }] }`);
  t.equal(nameOf(all, { application: 'a.b-c' }), 'dots');
  t.equal(nameOf(all, { application: 'axb-c' }), 'normal');
  t.equal(nameOf(all, { application: 'a.b-c ' }), 'normal');
  t.equal(nameOf(all, { address: 'fd12::1' }), 'six');
  t.equal(nameOf(all, { address: 'fe80::1' }), 'normal');
});

t.test('tags are asked about for each statement', async (t) => {
  const all = classes(`
  - { name: workflow, match: [{ tag: { job: workflow } }] }
  - { name: both, match: [{ tag: { job: x, team: y }, user: u }] }
  - { name: default, match: [{ user: u }] }
  - { name: never, match: [{ tag: { job: z } }] }`);
  t.equal(nameOf(all, {}, { job: 'workflow' }), 'workflow');
  t.equal(nameOf(all, {}, { job: 'x', team: 'y', more: '1' }), 'both');
  t.equal(nameOf(all, {}, { job: 'x' }), 'default');
  t.equal(nameOf(all, {}, null), 'default');
  t.equal(nameOf(all, {}, { job: 'z' }), 'default', 'decided before');
  t.equal(nameOf(all, { user: 'v' }, { job: 'z' }), 'never');
});

t.test('a class with users is theirs alone, and only they may ask for it', async (t) => {
  const all = classes(`
  - { name: vip, match: [{ application: vip }], users: [api] }
  - { name: open, match: [{ application: open }] }`);
  t.equal(nameOf(all, { application: 'vip' }), 'normal', 'the application name alone grants nothing');
  t.equal(nameOf(all, { application: 'vip', user: 'api' }), 'vip');
  t.equal(nameOf(all, { wanted: 'vip', user: 'api' }), 'vip');
  t.equal(nameOf(all, { wanted: 'vip' }), 'normal');
  t.equal(nameOf(all, { wanted: 'open' }), 'normal', 'a class for everybody is not to be asked for');
});

t.test('what a statement is decides, once the parser has spoken', async (t) => {
  const parser = new Parser(systemClock);
  t.teardown(() => parser.close());
  const judge = new Judge(parser);
  const all = classes(`
  - { name: triggers, match: [{ table: trigger_queue, kind: write }] }
  - { name: queue, match: [{ table: trigger_queue }] }
  - { name: audit, match: [{ table: log.entries }] }
  - { name: report, match: [{ shape: 'SELECT sum(x) FROM sales WHERE day > $1', user: u }] }
  - { name: schema, match: [{ kind: ddl }] }
  - { name: reads, match: [{ kind: read, user: reader }] }`);
  const classOf = async (sql: string, user = 'u') => {
    const source = Buffer.from(sql);
    const verdict = () => judge.judge(source, 0, source.length);
    verdict();
    await new Promise<void>((resolve) => parser.parseLater('SELECT 0', () => resolve()));
    return nameOf(all, { user }, null, verdict());
  };
  for (const [sql, name] of [
    ['INSERT INTO trigger_queue VALUES (1)', 'triggers'],
    ['insert into x.Trigger_Queue select 2', 'triggers'],
    ['WITH a AS (SELECT 1) UPDATE public.trigger_queue SET b = 1 FROM a', 'triggers'],
    ['COPY trigger_queue FROM stdin', 'triggers'],
    ['SELECT * FROM trigger_queue FOR UPDATE SKIP LOCKED', 'triggers'],
    ['TRUNCATE a, trigger_queue', 'triggers'],
    ['INSERT INTO other SELECT * FROM trigger_queue', 'queue'],
    ['SELECT 1 FROM a WHERE EXISTS (SELECT FROM trigger_queue)', 'queue'],
    ['COPY trigger_queue TO stdout', 'queue'],
    ['DROP TABLE a, trigger_queue', 'queue'],
    ['SELECT "Trigger_Queue" FROM a', 'normal'],
    ['SELECT * FROM log.entries', 'audit'],
    ['SELECT * FROM entries', 'normal'],
    [`select sum(x) from sales where day > '2026-01-01' /* nightly */`, 'report'],
    ['SELECT sum(x) FROM sales WHERE day > 5;', 'report'],
    ['SELECT sum(x) FROM sales WHERE day < 5', 'normal'],
    ['CREATE TABLE z AS SELECT 1', 'schema'],
    ['SELECT 1 AS a INTO z', 'schema'],
    ['ALTER TABLE z ADD b int', 'schema'],
    ['VACUUM z', 'normal'],
    ['no SQL at all', 'normal'],
  ] as const)
    t.equal(await classOf(sql), name, sql);
  t.equal(await classOf('SELECT 2', 'reader'), 'reads');
  t.equal(await classOf('DELETE FROM a', 'reader'), 'normal');
  t.equal(await classOf('EXPLAIN ANALYZE DELETE FROM a', 'reader'), 'normal', 'it would be done');
});

t.test('pings and upkeep are in a class of their own, but not in a transaction', async (t) => {
  const parser = new Parser(systemClock);
  t.teardown(() => parser.close());
  const judge = new Judge(parser);
  judge.want({ reads: true, places: false });
  const all = classes('  - { name: everything, match: [{ user: u }] }');
  const upkeep = [
    'SET a = 1',
    'show transaction_isolation',
    'ROLLBACK',
    'DISCARD ALL',
    'SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;',
  ];
  const classOf = (sql: string, isAlone = true) =>
    all.classOf(all.narrow(someone), judge.judge(Buffer.from(sql), 0, sql.length), isAlone).name;
  for (const sql of [
    '',
    ';',
    '-- ping',
    'SELECT 1',
    'select 1;',
    'SELECT 1 AS ok',
    'SELECT 1 one',
    '/* x */ SELECT 1',
  ].concat(upkeep))
    t.equal(classOf(sql), 'health', sql);
  for (const sql of [
    'SELECT 2',
    'SELECT 1, pg_sleep(9)',
    'SELECT 1 FROM a',
    'SELECT 1; SELECT 2',
    'SELECT',
    'SET a = 1; SELECT 5',
    'BEGIN',
  ])
    t.equal(classOf(sql), 'everything', sql);
  t.equal(classOf('SELECT 1', false), 'everything');
});

t.test('normal may be configured', async (t) => {
  const all = classes('  - { name: normal, priority: batch, weight: 3 }');
  t.match(all.classOf(all.narrow(someone), null, true), { name: 'normal', priority: 'batch', weight: 3 });
  t.strictSame(
    all.all.map(({ name }) => name),
    ['normal', 'health'],
  );
});

t.test('what makes no sense is an error with its place', async (t) => {
  for (const [yaml, problem] of [
    ['  - { name: a, match: [{}] }', 'classes.0.match.0: at least one key is needed'],
    ['  - { name: a, match: [{ address: 10.0.0.0/33 }] }', 'classes.0.match.0.address: expected an IP address'],
    ['  - { name: a, floor: 60% }\n  - { name: b, floor: 50% }', 'the floors together must not exceed 100%'],
    ['  - { name: a }\n  - { name: a }', 'every class needs a name of its own'],
    ['  - { name: a, match: [{ table: x.y.z }] }', 'classes.0.match.0.table: expected a name, or schema.name'],
    ['  - { name: a, match: [{ kind: reads }] }', 'classes.0.match.0.kind: Invalid option'],
    ['  - { name: A b }', 'classes.0.name: expected lower-case'],
  ] as const)
    t.throws(() => classes(yaml), { message: new RegExp(problem.replaceAll('.', String.raw`\.`)) }, yaml);
});
