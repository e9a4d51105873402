/** The console with PgBouncer's commands and columns, and the HTTP port: what people and their tools look at. */
import t from 'tap';
import { findProgram, run, skip, succeeds } from '../fixtures/drivers/programs.ts';
import { OCCUPY, RawClient, send, sqlstates } from '../fixtures/raw.ts';
import { connect, startProxy, temporaryFile, until, withPostgres } from '../fixtures/stack.ts';

const postgres = await withPostgres();
t.teardown(() => postgres.stop());

const columns: Record<string, string> = {
  POOLS:
    'database,user,cl_active,cl_waiting,cl_active_cancel_req,cl_waiting_cancel_req,sv_active,sv_active_cancel,' +
    'sv_being_canceled,sv_idle,sv_used,sv_tested,sv_login,maxwait,maxwait_us,pool_mode,load_balance_hosts',
  CLIENTS:
    'type,user,database,replication,state,addr,port,local_addr,local_port,connect_time,request_time,wait,wait_us,' +
    'close_needed,ptr,link,remote_pid,tls,application_name,prepared_statements,id',
  DATABASES:
    'name,host,port,database,force_user,pool_size,min_pool_size,reserve_pool_size,server_lifetime,pool_mode,' +
    'load_balance_hosts,max_connections,current_connections,max_client_connections,current_client_connections,paused,disabled',
  STATS_TOTALS:
    'database,server_assignment_count,xact_count,query_count,bytes_received,bytes_sent,xact_time,query_time,wait_time,' +
    'client_parse_count,server_parse_count,bind_count,client_login_count',
  LISTS: 'list,items',
  CONFIG: 'key,value,default,changeable',
  VERSION: 'version',
  STATE: 'key,value',
  USERS:
    'name,pool_size,reserve_pool_size,pool_mode,max_user_connections,current_connections,max_user_client_connections,' +
    'current_client_connections',
  MEM: 'name,size,used,free,memtotal',
  TOTALS: 'name,value',
  PEERS: 'peer_id,host,port,pool_size',
  PEER_POOLS: 'peer_id,cl_active_cancel_req,cl_waiting_cancel_req,sv_active_cancel,sv_login',
  DNS_HOSTS: 'hostname,ttl,addrs',
  DNS_ZONES: 'zonename,serial,count',
};
columns.SERVERS = columns.CLIENTS!;
columns.SOCKETS = `${columns.CLIENTS},recv_pos,pkt_pos,pkt_remain,send_pos,send_remain,pkt_avail,send_avail`;
columns.ACTIVE_SOCKETS = columns.SOCKETS;

t.test('SHOW answers with PgBouncer’s columns, in its types', async (t) => {
  const proxy = await startProxy(postgres.port, {
    top: {
      admission: { mode: 'enforce' },
      classes: [{ name: 'a', match: [{ user: 'x' }] }],
      cache: { mode: 'on', sets: { s: [{ tables: ['t'], ttl: '1s' }] } },
      ledgers: {
        cpu: {
          metric: { source: 'http', url: 'http://127.0.0.1:1/', value: '/x', every: '1h' },
          unit: 'percent',
          reserve: '5%',
        },
      },
    },
    database: { cache: 's', ledgers: ['cpu'], control: { user: 'postgres' } },
  });
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port, { application_name: 'shown' });
  await client.query('SELECT $1::int', [1]);
  const admin = await connect(proxy.port, { database: 'pgbouncer' });
  for (const [what, expected] of Object.entries(columns)) {
    const { fields } = await admin.query(`SHOW ${what};`);
    t.equal(fields.map(({ name }) => name).join(','), expected, what);
  }
  const ours = 'classes switches ledgers hosts breakers cache cache_shapes events bypass shapes refusals'.split(' ');
  for (const what of ours) t.ok((await admin.query(`SHOW ${what}`)).fields.length > 0, what);
  const stats = await admin.query('SHOW STATS');
  t.equal(stats.fields.length, 25);
  t.equal(stats.fields[4]!.name, 'total_received');
  t.equal(stats.fields[16]!.name, 'avg_recv');
  t.ok(stats.fields.slice(1).every(({ dataTypeID }) => dataTypeID === 1700));
  const { rows: clients } = await admin.query('show clients');
  t.match(clients, [{ type: 'C', user: 'postgres', database: 'postgres', state: 'idle', application_name: 'shown' }]);
  const { rows: totals } = await admin.query('SHOW STATS_TOTALS');
  t.match(totals, [
    { database: 'postgres', xact_count: '1', query_count: '1', client_login_count: '1' },
    { database: 'pgbouncer', server_assignment_count: '0', client_login_count: '1' },
  ]);
  const commands = Number(totals[1].query_count);
  const { rows: pools } = await admin.query('SHOW POOLS');
  t.match(pools, [{ database: 'postgres', cl_active: 1, sv_idle: 1, pool_mode: 'transaction' }]);
  t.match((await admin.query('SHOW TOTALS')).rows.slice(1, 3), [
    { name: 'total_xact_count', value: String(1 + commands + 2) },
    { name: 'total_query_count', value: String(1 + commands + 2) },
  ]);
  t.equal((await admin.query('SHOW SOCKETS')).rows.length, 3, 'with that of the console');
  t.equal((await admin.query('SHOW ACTIVE_SOCKETS')).rows.length, 1);
  t.ok((await admin.query('SHOW MEM')).rows.every(({ memtotal }) => memtotal > 0));
  await t.rejects(admin.query('SHOW FDS'), { code: '0A000' });
  await t.rejects(admin.query('FROBNICATE'), { code: '42601', message: /invalid command 'FROBNICATE', use SHOW HELP/ });
  t.equal(proxy.bugs(), 0, 'each row has as many values as there are columns');
  await admin.end();
  await client.end();
});

t.test('the exporters of Prometheus find in the console what they look for', async (t) => {
  const users = temporaryFile('users', '"postgres" "x"\n"other" "y"\n');
  t.teardown(users.remove);
  const proxy = await startProxy(postgres.port, { top: { auth: { method: 'trust', users: users.path } } });
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port, { application_name: 'shown' });
  t.teardown(() => client.end());
  await client.query('SELECT 1');
  const admin = await connect(proxy.port, { database: 'pgbouncer' });
  t.same(
    (await admin.query('SHOW USERS')).rows.map(({ name }) => name),
    ['postgres', 'other'],
  );
  // What prometheus-community/pgbouncer_exporter asks, in its words, and what it cannot do without.
  for (const [what, needed] of Object.entries({
    VERSION: ['version'],
    LISTS: ['list', 'items'],
    CONFIG: ['key', 'value', 'changeable'],
    CLIENTS: ['database', 'user', 'application_name', 'state'],
    DATABASES: ['name', 'pool_size', 'current_connections', 'paused', 'disabled'],
    STATS_TOTALS: ['database', 'query_count', 'wait_time'],
    POOLS: ['database', 'user', 'cl_active', 'maxwait', 'maxwait_us'],
  })) {
    const { fields, rows } = await admin.query(`SHOW ${what};`);
    const names = fields.map(({ name }) => name);
    for (const name of needed) t.ok(names.includes(name), `${what}.${name}`);
    t.ok(rows.length > 0, `${what} has rows`);
  }
  const config = (await admin.query('SHOW CONFIG')).rows.map(({ key }) => key);
  t.ok(config.includes('max_client_conn') && config.includes('max_user_connections'));
  await admin.end();

  // Debian's exporter wants columns that PgBouncer itself has given up: total_requests of SHOW STATS in 1.8, reserve_pool of SHOW DATABASES
  // in 1.24. Those of its parts are asked that work with PgBouncer 1.25.
  if (!succeeds('/usr/bin/python3', ['-c', 'import prometheus_pgbouncer_exporter']))
    return skip(t, 'the exporter for PgBouncer', 'prometheus-pgbouncer-exporter');
  const { code, stdout, stderr } = await run('/usr/bin/python3', ['-c', EXPORT, `${proxy.port}`]);
  t.equal(code, 0, stderr);
  t.match(stdout, /^pgbouncer_active_clients \['postgres', 'postgres'\] 1$/m);
  t.match(stdout, /^pgbouncer_used_clients 2$/m);
});

/** Prints what two of its collectors give. */
const EXPORT = `
import sys
from prometheus_pgbouncer_exporter import collectors, utils
connection = utils.get_connection('postgres', int(sys.argv[1]), '127.0.0.1')
for collector in (collectors.PoolsCollector(connection=connection, databases=None), collectors.ListsCollector(connection=connection)):
    for family in collector.collect():
        for sample in family.samples: print(sample[0], *([list(sample[1].values())] if sample[1] else []), sample[2])
`;

t.test('psql takes every table: it checks each row', async (t) => {
  const psql = findProgram('psql');
  if (psql === null) return skip(t, 'psql', 'postgresql-client');
  const proxy = await startProxy(postgres.port, { top: { admission: { mode: 'enforce' } } });
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port);
  await client.query('SELECT 1');
  const ours = 'SWITCHES CLASSES LEDGERS HOSTS BREAKERS CACHE CACHE_SHAPES EVENTS BYPASS SHAPES REFUSALS'.split(' ');
  const commands = [...Object.keys(columns), 'STATS', 'STATS_AVERAGES', ...ours].flatMap((what) => [
    '-c',
    `SHOW ${what}`,
  ]);
  const url = `postgres://postgres@127.0.0.1:${proxy.port}/pgbouncer?sslmode=disable`;
  const { code, stderr } = await run(psql, ['-X', '-d', url, ...commands]);
  t.match({ code, stderr }, { code: 0, stderr: '' });
  await client.end();
});

t.test('PAUSE waits for transactions and holds the next; RESUME lets go; RELOAD reloads', async (t) => {
  const proxy = await startProxy(postgres.port, { pool: { size: 1 } });
  t.teardown(() => proxy.stop());
  const [admin, busy, next] = [
    await connect(proxy.port, { database: 'pgweir' }),
    await connect(proxy.port),
    await connect(proxy.port),
  ];
  await busy.query(OCCUPY);
  let isPaused = false;
  const pausing = admin.query('PAUSE').then(() => (isPaused = true));
  await until(() => proxy.app.snapshot().pools[0]!.isPaused, 'the pause to begin');
  const waiting = next.query('SELECT 1 AS one');
  t.notOk(isPaused, 'a transaction is open');
  await busy.query('COMMIT');
  await pausing;
  t.equal(proxy.app.snapshot().pools[0]!.waiters.size, 1);
  const other = await connect(proxy.port, { database: 'pgweir' });
  await other.query('RESUME');
  t.match((await waiting).rows, [{ one: 1 }]);
  t.equal((await other.query('RELOAD')).command, 'RELOAD');
  await Promise.all([admin, busy, next, other].map((client) => client.end()));
});

t.test('who may use the console, and how', async (t) => {
  const proxy = await startProxy(postgres.port, {
    top: { auth: { method: 'trust', admins: ['boss'], readers: ['eye'] } },
  });
  t.teardown(() => proxy.stop());
  await t.rejects(connect(proxy.port, { user: 'stranger', database: 'pgbouncer' }), { code: '42501' });
  const eye = await connect(proxy.port, { user: 'eye', database: 'pgbouncer' });
  t.match((await eye.query('SHOW VERSION')).rows, [{ version: /^pgweir / }]);
  await t.rejects(eye.query('PAUSE'), { code: '42501' });
  await eye.end();
  const raw = await RawClient.open(proxy.port, { user: 'boss', database: 'pgweir' });
  raw.write(send.parse('', 'SHOW POOLS'), send.sync());
  t.same(sqlstates(await raw.closed()), ['08P01']);
});

t.test('the HTTP port tells health and metrics, the latter to who has the token', async (t) => {
  const token = temporaryFile('token', 'secret\n');
  t.teardown(token.remove);
  const proxy = await startProxy(postgres.port, { top: { ops: { port: 0, tokenFile: token.path } } });
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port);
  await client.query('SELECT pg_advisory_lock(1)');
  const get = (path: string, headers = {}) => fetch(`http://127.0.0.1:${proxy.opsPort}${path}`, { headers });
  t.equal((await get('/livez')).status, 200);
  t.match(await (await get('/readyz?verbose')).text(), /\[\+\]config\n\[\+\]listener[\s\S]*ok/);
  t.equal((await get('/metrics')).status, 401);
  t.equal((await get('/nothing')).status, 404);
  const text = await (await get('/metrics', { authorization: 'Bearer secret' })).text();
  t.match(text, /^pgweir_servers\{database="postgres",user="postgres",state="active"\} 1$/m);
  t.match(text, /^pgweir_pins_total\{database="postgres",user="postgres",reason="lock"\} 1$/m);
  t.match(text, /^pgweir_wait_seconds_bucket\{database="postgres",user="postgres",le="\+Inf"\} \d+$/m);
  t.match(text, /^pgweir_event_loop_lag_seconds\{percentile="99"\} [\d.e-]+$/m);
  t.match(text, /^# TYPE pgweir_queries_total counter$/m);
  await client.end();
});
