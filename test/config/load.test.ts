/** config/load: every mistake has a place and a name, nothing is silently ignored. */
import t from 'tap';
import { parseConfig } from '../../src/config/load.ts';

const base = 'auth: { method: trust }\ndatabases:\n  app:\n    hosts: [db]\n';
const problems = (text: string, environment: Record<string, string> = {}) => {
  const loaded = parseConfig(text, 'f.yaml', environment);
  return loaded.ok ? [] : loaded.problems;
};
const load = (text: string, environment: Record<string, string> = {}) => {
  const loaded = parseConfig(text, 'f.yaml', environment);
  if (!loaded.ok) throw new Error(loaded.problems.join('\n'));
  return loaded.config;
};

t.test('defaults and units', async (t) => {
  const { listen, databases, drain } = load(base);
  t.match(listen, {
    host: '127.0.0.1',
    port: 6432,
    clientsMax: 5000,
    loginTimeout: 15_000,
    messageMax: 64 * 1024 ** 2,
    tls: { mode: 'disable' },
  });
  t.match(databases.app, {
    hosts: [{ host: 'db', port: 5432, serversMax: null }],
    serversMax: 100,
    tls: { mode: 'prefer' },
  });
  t.match(databases.app?.pool, { mode: 'transaction', pinnedMax: 0.5, lifetimeMax: 3_600_000, queryMax: 0 });
  t.equal(drain.timeout, 60_000);
  t.match(load(base.replace('[db]', "['[::1]:7']")).databases.app?.hosts, [{ host: '::1', port: 7 }]);
  t.match(load(base.replace('[db]', '[{ address: db, serversMax: 3 }]')).databases.app?.hosts, [
    { host: 'db', serversMax: 3 },
  ]);
});

t.test('a mistake is told with file, line, column and path', async (t) => {
  t.match(problems(`listen:\n  port: 70000\n${base}`), [/^f\.yaml:2:3: listen\.port: /]);
  t.match(problems(`listen:\n  prot: 1\n${base}`), ['f.yaml:2:3: listen.prot: unknown key']);
  t.match(problems(`${base}    pool:\n      waitMax: 5 s\n`), [
    /^f\.yaml:6:7: databases\.app\.pool\.waitMax: expected a value like/,
  ]);
  t.match(problems(base.replace('[db]', "['a:b:c:d']")), [
    /^f\.yaml:4:\d+: databases\.app\.hosts\.0: expected host:port/,
  ]);
  t.match(problems('databases: {}\n'), [/auth/, /at least one database/]);
  t.match(problems('a: [\n'), [/^f\.yaml:\d+:\d+: /]);
  t.match(problems('- x\n'), [/^f\.yaml:1:1: expected keys/]);
  t.match(problems(''), [/f\.yaml:1:1: auth: /, /f\.yaml:1:1: databases: /]);
  t.match(problems(`${base}  b:\n    hosts: []\n`), [/^f\.yaml:6:5: databases\.b\.hosts/]);
});

t.test('rules over several keys', async (t) => {
  t.match(problems(base.replace('trust', 'md5')), [/auth: users or query is needed/]);
  t.match(problems(`${base}    pool: { size: 2, sizeMin: 3 }\n`), [/sizeMin must not exceed size/]);
  t.match(problems(`listen: { tls: { mode: require } }\n${base}`), [/cert and key are needed/]);
  t.match(problems(`${base}    passwordFile: x\n`), [/passwordFile needs user/]);
  t.match(problems(`${base}    cache: catalogue\n`), [/there is no set "catalogue"/, /a cache needs a control user/]);
  t.match(problems(`cache: { sets: { a: [{ ttl: 1s }] } }\n${base}`), [/either tables or hint is needed/]);
});

t.test('what a later version will understand is refused by name', async (t) => {
  const text = `trustFunctions: []\nworkers: 2\n${base}`;
  t.same(problems(text).sort(), [
    'f.yaml:1:1: trustFunctions: not supported yet by this version',
    'f.yaml:2:1: workers: not supported yet by this version',
  ]);
  t.match(problems(base.replace('trust', 'hba')), [/method hba and the file hba belong together/]);
  t.match(problems(base.replace('trust', 'cert')), [/cert needs listen\.tls with ca/]);
  t.match(problems(base.replace('[db]', '[a, b]')), [/databases\.app: several hosts need control/]);
  t.match(problems(base.replace('[db]', "[a, 'a:5432']")), [/need control/, /the same host stands in hosts twice/]);
});

t.test('values come from the environment, and keys can be overridden', async (t) => {
  t.equal(load(`listen: { port: '\${PORT}' }\n${base}`, { PORT: '7000' }).listen.port, 7000);
  t.match(problems(`listen: { host: '\${NOPE}' }\n${base}`), [
    /f\.yaml:1:11: listen\.host: the environment variable NOPE is not set/,
  ]);
  const config = load(base, {
    PGWEIR_LISTEN__CLIENTS_MAX: '9',
    PGWEIR_DATABASES__APP__POOL__SIZE: '3',
    PGWEIR_AUTH__METHOD: 'trust',
  });
  t.equal(config.listen.clientsMax, 9);
  t.equal(config.databases.app?.pool.size, 3);
  t.match(problems(base, { PGWEIR_LISTEN__NOPE: '1' }), [/PGWEIR_LISTEN__NOPE: no key/]);
});
