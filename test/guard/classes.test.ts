/** guard/classes: which class a request belongs to. */
import t from 'tap';
import { parseConfig } from '../../src/config/load.ts';
import { Classes, type ClientTraits } from '../../src/guard/classes.ts';

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

function nameOf(all: Classes, client: Partial<ClientTraits>, tags: Record<string, string> | null = null): string {
  const narrowed = all.narrow({ ...someone, ...client });
  return all.classOf(narrowed, tags === null ? null : new Map(Object.entries(tags))).name;
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
  t.notOk(all.hasTags);
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
  t.ok(all.hasTags);
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

t.test('normal may be configured', async (t) => {
  const all = classes('  - { name: normal, priority: batch, weight: 3 }');
  t.match(all.classOf(all.narrow(someone), null), { name: 'normal', priority: 'batch', weight: 3 });
  t.equal(all.all.length, 1);
});

t.test('what makes no sense is an error with its place', async (t) => {
  for (const [yaml, problem] of [
    ['  - { name: a, match: [{}] }', 'classes.0.match.0: at least one key is needed'],
    ['  - { name: a, match: [{ address: 10.0.0.0/33 }] }', 'classes.0.match.0.address: expected an IP address'],
    ['  - { name: a, floor: 60% }\n  - { name: b, floor: 50% }', 'the floors together must not exceed 100%'],
    ['  - { name: a }\n  - { name: a }', 'every class needs a name of its own'],
    ['  - { name: a, match: [{ table: x }] }', 'classes.0.match.0.table: not supported yet'],
    ['  - { name: A b }', 'classes.0.name: expected lower-case'],
  ] as const)
    t.throws(() => classes(yaml), { message: new RegExp(problem.replaceAll('.', String.raw`\.`)) }, yaml);
});
