/** A pgbouncer.ini becomes a configuration that loads; what has no counterpart is told. */
import { existsSync, readFileSync } from 'node:fs';
import t from 'tap';
import { importPgbouncer } from '../../src/config/import.ts';
import { parseConfig } from '../../src/config/load.ts';
import { skip } from '../fixtures/drivers/programs.ts';

const nothing = () => '';

function load(yaml: string) {
  const loaded = parseConfig(yaml, 'imported', {});
  if (!loaded.ok) throw new Error(loaded.problems.join('\n'));
  return loaded.config;
}

t.test('keys go to their places, in their units', async (t) => {
  const { yaml, notes, secrets } = importPgbouncer(
    `
; a comment
[databases]
app = host=db-1,db-2 port=5433 dbname=prod user=web password='it''s' pool_size=7 connect_query='SELECT 1' max_db_connections=40
* = host=::1
"odd name" = host=/run/postgresql
[users]
bob = pool_mode=session max_user_connections=4 max_user_client_connections=9 query_timeout=7
[pgbouncer]
listen_addr = *
listen_port = 6433
unix_socket_dir =
auth_type = scram-sha-256
auth_file = users.txt
admin_users = ann, bob
stats_users = monitor
pool_mode = transaction
max_client_conn = 900
default_pool_size = 30
query_wait_timeout = 0
idle_transaction_timeout = 60
server_tls_sslmode = verify-full
reserve_pool_size = 5
reserve_pool_timeout = 2
max_user_connections = 8
max_db_client_connections = 70
autodb_idle_timeout = 60
application_name_add_host = 1
max_packet_size = 2147483647
verbose = 1
made_up = 7
%include more.ini
`,
    (file) => (file === 'more.ini' ? '[pgbouncer]\nquery_timeout = 30\n' : ''),
  );
  const config = load(yaml);
  t.match(config.listen, { host: '0.0.0.0', port: 6433, clientsMax: 900, socketDir: null, messageMax: 2 ** 30 });
  t.match(config.auth, { method: 'scram-sha-256', users: 'users.txt', admins: ['ann', 'bob'], readers: ['monitor'] });
  t.equal(config.log.level, 'debug');
  const { app, '*': all, 'odd name': odd } = config.databases;
  t.match(app, { dbname: 'prod', user: 'web', passwordFile: 'app.password', tls: { mode: 'verify-full' } });
  t.match(app!.hosts, [{ host: 'db-1', port: 5433 }]);
  t.match(app!.pool, {
    mode: 'transaction',
    size: 7,
    waitMax: 86_400_000,
    idleInTransactionMax: 60_000,
    queryMax: 30_000,
  });
  t.match([all!.hosts[0]!.host, all!.pool.size], ['::1', 30]);
  t.equal(odd!.hosts[0]!.host, '/run/postgresql');
  t.match(app, {
    connectQuery: 'SELECT 1',
    pool: { sizeTotal: 40, sizeReserve: 5, reserveAfter: 2000 },
  });
  t.match([all!.unusedMax, config.listen.applicationNameAddHost], [60_000, 'on']);
  t.equal(config.listen.databaseClientsMax, 70);
  t.match(config.users, {
    '*': { serversMax: 8 },
    bob: { serversMax: 4, clientsMax: 9, pool: { mode: 'session', queryMax: 7000 } },
  });
  t.same(secrets, [{ file: 'app.password', text: "it's\n" }]);
  t.notMatch(yaml, "it's", 'no secret in the configuration');
  for (const told of ['db-2', 'made_up'])
    t.ok(
      notes.some((note) => note.includes(told)),
      told,
    );
});

t.test('PgBouncer’s defaults hold where they are felt', async (t) => {
  const config = load(importPgbouncer('[databases]\na = host=h\n[pgbouncer]\n', nothing).yaml);
  t.match(config.databases.a!.pool, { mode: 'session', waitMax: 120_000, connectMax: 15_000 });
  t.equal(config.listen.clientsMax, 100);
  t.match(config.auth, { method: 'md5', users: 'userlist.txt', admins: [] });
});

t.test('what PgBouncer takes loads here, and means the same', async (t) => {
  const { yaml, notes } = importPgbouncer(
    `
[databases]
small = host=h min_pool_size=10 pool_size=5 query_wait_timeout=-1 pool_mode=statement
secret = host=h password=forgotten
big = host=h pool_size=200 max_db_connections=0
%include dbs.ini
[users]
ann = query_wait_timeout=-1 pool_size=-1
[pgbouncer]
auth_hba_file = /nowhere
auth_user = asks
client_login_timeout = 0
server_connect_timeout = 0
reserve_pool_size = 5
reserve_pool_timeout = 0
query_wait_timeout = 9
max_prepared_statements = 0
client_tls_sslmode = verify-full
client_tls_key_file = k
client_tls_cert_file = c
client_tls_ca_file = ca
server_tls13_ciphers = TLS_AES_256_GCM_SHA384
query_wait_notify = 5
`,
    (file) => (file === 'dbs.ini' ? 'other = host=h2\n' : ''),
  );
  const { databases, listen, auth, users } = load(yaml);
  t.match(databases.small!.pool, { size: 5, sizeMin: 5, waitMax: 9_000, sizeReserve: 0, connectMax: 86_400_000 });
  t.equal(databases.secret!.passwordFile, undefined);
  t.equal(databases.other!.hosts[0]!.host, 'h2', 'an included file goes on in the section');
  t.same([databases.small!.serversMax, databases.big!.serversMax, databases.other!.serversMax], [225, 225, 100]);
  t.match(users.ann, { pool: { size: undefined } });
  t.match(listen, { loginTimeout: 86_400_000, socketDir: '/tmp', messageMax: 2 ** 30, tls: { mode: 'verify-ca' } });
  t.match(auth, { hba: null, users: null, query: { user: 'asks' } });
  const told = notes.join('\n');
  for (const word of [
    'auth_hba_file',
    'secret: its password',
    'verify-full',
    'max_prepared_statements',
    'h:5432: at most 225',
  ])
    t.match(told, word);
  t.notMatch(told, 'not known');
});

t.test('a key that every object has is not known either', async (t) => {
  const { notes } = importPgbouncer('[databases]\na = toString=1\n[pgbouncer]\nconstructor = 1\n', nothing);
  t.match(notes.join('\n'), /constructor = 1: not known[\s\S]*a: toString = 1: not known/);
});

t.test('what it cannot read it says, with the line', async (t) => {
  t.throws(() => importPgbouncer('[pgbouncer]\nnonsense\n', nothing), /line 2: expected key = value/);
  t.throws(() => importPgbouncer('%include a\n', () => '%include a\n'), /circle/);
  t.throws(() => importPgbouncer('[databases]\n%include a\n', () => '\nx\n'), /a, line 2: expected/);
});

t.test('PgBouncer’s own example', async (t) => {
  const example = '/etc/pgbouncer/pgbouncer.ini';
  if (!existsSync(example)) return skip(t, 'PgBouncer', 'pgbouncer');
  const { yaml, notes } = importPgbouncer(readFileSync(example, 'utf8'), nothing);
  t.ok(Object.keys(load(yaml).databases).length > 0);
  t.notMatch(notes.join('\n'), 'not known', 'every key of it is known');
});
