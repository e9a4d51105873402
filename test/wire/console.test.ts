/** The console with PgBouncer's commands and columns, and the HTTP port: what people and their tools look at. */
import t from 'tap';
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
};
columns.SERVERS = columns.CLIENTS!;

t.test('SHOW answers with PgBouncer’s columns, in its types', async (t) => {
  const proxy = await startProxy(postgres.port);
  t.teardown(() => proxy.stop());
  const client = await connect(proxy.port, { application_name: 'shown' });
  await client.query('SELECT $1::int', [1]);
  const admin = await connect(proxy.port, { database: 'pgbouncer' });
  for (const [what, expected] of Object.entries(columns)) {
    const { fields } = await admin.query(`SHOW ${what};`);
    t.equal(fields.map(({ name }) => name).join(','), expected, what);
  }
  const stats = await admin.query('SHOW STATS');
  t.equal(stats.fields.length, 25);
  t.equal(stats.fields[4]!.name, 'total_received');
  t.equal(stats.fields[16]!.name, 'avg_recv');
  t.ok(stats.fields.slice(1).every(({ dataTypeID }) => dataTypeID === 1700));
  const { rows: clients } = await admin.query('show clients');
  t.match(clients, [{ type: 'C', user: 'postgres', database: 'postgres', state: 'idle', application_name: 'shown' }]);
  const { rows: totals } = await admin.query('SHOW STATS_TOTALS');
  t.match(totals, [{ database: 'postgres', xact_count: '1', query_count: '1', client_login_count: '1' }]);
  const { rows: pools } = await admin.query('SHOW POOLS');
  t.match(pools, [{ database: 'postgres', cl_active: 1, sv_idle: 1, pool_mode: 'transaction' }]);
  await t.rejects(admin.query('FROBNICATE'), { code: '42601', message: /invalid command 'FROBNICATE', use SHOW HELP/ });
  await admin.end();
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
