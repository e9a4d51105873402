/**
 * A pgbouncer.ini as a configuration of ours. Pure but for `%include`. Called by cli (`pgweir import`).
 *
 * The one idea: every key of the file either has a counterpart, or is told with what to do instead: nothing is dropped silently. Keys that are
 * left out take PgBouncer's default where ours differs and the difference can be felt (pgbouncer.org/config.html).
 */
import { stringify } from 'yaml';
import { readConnectionString, readIni, type Section } from './ini.ts';
import { HOST_SERVERS_MAX } from './schema.ts';

export interface Imported {
  /** The configuration, as YAML. */
  yaml: string;
  /** What has no counterpart, or another one than somebody might think. */
  notes: string[];
  /** Secrets that stood in the file: they belong into files of their own. */
  secrets: { file: string; text: string }[];
}

type Json = { [key: string]: unknown };

/** What is meant by a key, or why it means nothing here. */
type Meaning =
  | {
      path: string;
      as: (value: string) => unknown /** What must be known besides. */;
      note?: (value: string) => string;
    }
  | { note: string };

/** -1: not set, wherever a number is wanted. */
const given = <Value>(value: string, as: Value) => (Number(value) < 0 ? undefined : as);
const seconds = (value: string) => given(value, `${Number(value)}s`);
const duration = (path: string): Meaning => ({ path, as: seconds });
/** 0 is no limit, for which we want a long one. */
const limit = (path: string): Meaning => ({ path, as: (value) => (Number(value) === 0 ? '24h' : seconds(value)) });
const number = (path: string): Meaning => ({ path, as: (value) => given(value, Number(value)) });
const words = (path: string): Meaning => ({ path, as: (value) => value.split(/[\s,]+/).filter(Boolean) });
const text = (path: string): Meaning => ({ path, as: (value) => value });
const note = (what: string): Meaning => ({ note: what });

const LOGS = note('logs go to standard output: the supervisor keeps them');
const SOCKETS = note('the operating system’s settings hold');
const DNS = note('names are looked up again every 15 s, and after a connect that failed');
/** Words of PgBouncer's that stand for lists of its own. */
const ciphers = (path: string): Meaning => ({
  path,
  as: (value) => (['default', 'secure', 'fast', 'normal', 'all'].includes(value) ? undefined : value),
});
/** Node has those of TLS 1.3 in the same list. */
const CIPHERS13 = note('add its names to those of tls.ciphers, with colons between them');
const CHECKED = note('a server that was idle for 30 s is asked whether it is there, before a client gets it');
const minVersion = (value: string) =>
  /tlsv1\.3/.test(value) && !/tlsv1\.2|secure|all/.test(value) ? 'TLSv1.3' : undefined;
const cap = (path: string): Meaning => ({ path, as: (value) => (Number(value) > 0 ? Number(value) : undefined) });

const NOT_YET = note('not supported yet');
const ITSELF = note('done by itself');

const globals: Readonly<Record<string, Meaning>> = {
  listen_port: number('listen.port'),
  max_client_conn: number('listen.clientsMax'),
  client_login_timeout: limit('listen.loginTimeout'),
  client_tls_sslmode: {
    path: 'listen.tls.mode',
    // The manual: "Same as verify-ca".
    as: (value) => (value === 'verify-full' ? 'verify-ca' : value),
    note: (value) =>
      value === 'verify-full'
        ? 'PgBouncer does not compare names, so verify-ca is taken; verify-full of listen.tls.mode wants the user’s name in the certificate'
        : '',
  },
  client_tls_cert_file: text('listen.tls.cert'),
  client_tls_key_file: text('listen.tls.key'),
  client_tls_ca_file: text('listen.tls.ca'),
  client_tls_ciphers: ciphers('listen.tls.ciphers'),
  client_tls13_ciphers: CIPHERS13,
  server_tls13_ciphers: CIPHERS13,
  client_tls_protocols: { path: 'listen.tls.minVersion', as: minVersion },
  client_tls_dheparams: NOT_YET,
  client_tls_ecdhcurve: NOT_YET,
  auth_file: text('auth.users'),
  admin_users: words('auth.admins'),
  stats_users: words('auth.readers'),
  auth_ldap_options: note('LDAP is not supported: let Postgres ask it, or use SCRAM'),
  max_user_connections: cap('users.*.serversMax'),
  max_user_client_connections: cap('users.*.clientsMax'),
  max_db_client_connections: cap('listen.databaseClientsMax'),
  server_reset_query: note('servers are reset by what their clients have done; nothing is to be configured'),
  server_reset_query_always: ITSELF,
  server_check_query: CHECKED,
  server_check_delay: CHECKED,
  server_round_robin: note('the server that was used last is used next'),
  server_fast_close: ITSELF,
  server_login_retry: note('pauses between attempts grow by themselves, up to a second'),
  ignore_startup_parameters: words('listen.ignoreParameters'),
  track_extra_parameters: note('all parameters that Postgres reports are tracked'),
  application_name_add_host: {
    path: 'listen.applicationNameAddHost',
    as: (value) => (Number(value) > 0 ? 'on' : 'off'),
  },
  cancel_wait_timeout: ITSELF,
  disable_pqexec: NOT_YET,
  conffile: ITSELF,
  service_name: ITSELF,
  job_name: ITSELF,
  stats_period: note('averages are over 60 s'),
  log_connections: LOGS,
  log_disconnections: LOGS,
  log_pooler_errors: LOGS,
  query_wait_notify: note('a client that waits is told when it is refused: 53000, with the reason'),
  login_notify_message: NOT_YET,
  scram_iterations: note('secrets in auth.users are used as they are; of clear text 4,096 are made'),
  log_stats: note('the numbers are at /metrics'),
  logfile: LOGS,
  syslog: LOGS,
  syslog_facility: LOGS,
  syslog_ident: LOGS,
  pidfile: note('the supervisor knows the process'),
  user: note('start it as the user that it is to be'),
  unix_socket_mode: NOT_YET,
  unix_socket_group: NOT_YET,
  peer_id: NOT_YET,
  suspend_timeout: ITSELF,
  max_packet_size: {
    path: 'listen.messageMax',
    as: (value) => `${Math.floor(Math.min(Number(value), 2 ** 30) / 1024)}KiB`,
  },
  pkt_buf: ITSELF,
  listen_backlog: SOCKETS,
  sbuf_loopcnt: ITSELF,
  so_reuseport: NOT_YET,
  tcp_defer_accept: SOCKETS,
  tcp_socket_buffer: SOCKETS,
  tcp_keepalive: SOCKETS,
  tcp_keepcnt: SOCKETS,
  tcp_keepidle: SOCKETS,
  tcp_keepintvl: SOCKETS,
  tcp_user_timeout: SOCKETS,
  dns_max_ttl: DNS,
  dns_nxdomain_ttl: DNS,
  dns_zone_check_period: DNS,
  resolv_conf: DNS,
};

/** Keys of [pgbouncer] that hold for every database; beneath databases.*. */
const shared: Readonly<Record<string, Meaning>> = {
  pool_mode: text('pool.mode'),
  default_pool_size: number('pool.size'),
  min_pool_size: number('pool.sizeMin'),
  reserve_pool_size: number('pool.sizeReserve'),
  // 0 takes the reserve away: see `fitSizes`.
  reserve_pool_timeout: { path: 'pool.reserveAfter', as: (value) => (Number(value) > 0 ? seconds(value) : undefined) },
  max_db_connections: cap('pool.sizeTotal'),
  autodb_idle_timeout: duration('unusedMax'),
  max_prepared_statements: {
    path: 'pool.preparedMax',
    as: (value) => (Number(value) > 0 ? Number(value) : undefined),
    note: (value) => (Number(value) > 0 ? '' : 'prepared statements are not switched off: they work in every mode'),
  },
  // 0: used once; here, for as long as that may take.
  pool_idle_timeout: duration('pool.unusedMax'),
  server_lifetime: { path: 'pool.lifetimeMax', as: (value) => (Number(value) === 0 ? '100ms' : seconds(value)) },
  server_idle_timeout: duration('pool.idleMax'),
  server_connect_timeout: limit('pool.connectMax'),
  query_timeout: duration('pool.queryMax'),
  query_wait_timeout: limit('pool.waitMax'),
  client_idle_timeout: duration('pool.clientIdleMax'),
  idle_transaction_timeout: duration('pool.idleInTransactionMax'),
  transaction_timeout: duration('pool.transactionMax'),
  server_tls_sslmode: { path: 'tls.mode', as: (value) => (value === 'allow' ? 'prefer' : value) },
  server_tls_ca_file: text('tls.ca'),
  server_tls_cert_file: text('tls.cert'),
  server_tls_key_file: text('tls.key'),
  server_tls_ciphers: ciphers('tls.ciphers'),
  server_tls_protocols: { path: 'tls.minVersion', as: minVersion },
};

/** Where PgBouncer's defaults differ from ours so that it is felt. */
const defaults: Readonly<Record<string, string>> = {
  pool_mode: 'session',
  default_pool_size: '20',
  max_client_conn: '100',
  query_wait_timeout: '120',
  server_connect_timeout: '15',
  client_login_timeout: '60',
  max_packet_size: '2147483647',
};
const SOCKET_FOLDER = '/tmp';
const METHOD = 'md5';

/** Keys of a line of [databases]. */
const ofDatabase: Readonly<Record<string, Meaning>> = {
  dbname: text('dbname'),
  user: text('user'),
  pool_size: number('pool.size'),
  min_pool_size: number('pool.sizeMin'),
  pool_mode: text('pool.mode'),
  max_db_connections: shared.max_db_connections!,
  max_db_client_connections: number('clientsMax'),
  reserve_pool: shared.reserve_pool_size!,
  reserve_pool_size: shared.reserve_pool_size!,
  server_lifetime: shared.server_lifetime!,
  query_timeout: shared.query_timeout!,
  query_wait_timeout: shared.query_wait_timeout!,
  connect_query: text('connectQuery'),
  client_encoding: note('clients that want it say so: their settings are kept'),
  datestyle: note('clients that want it say so: their settings are kept'),
  timezone: note('clients that want it say so: their settings are kept'),
  application_name: note('clients give theirs'),
  load_balance_hosts: note('the primary is found among `hosts`; reads go to standbys with `reads: replica`'),
};

/** Keys of a line of [users]. */
const ofUser: Readonly<Record<string, Meaning>> = {
  pool_size: number('pool.size'),
  pool_mode: text('pool.mode'),
  reserve_pool_size: number('pool.sizeReserve'),
  query_timeout: shared.query_timeout!,
  query_wait_timeout: shared.query_wait_timeout!,
  idle_transaction_timeout: shared.idle_transaction_timeout!,
  transaction_timeout: shared.transaction_timeout!,
  client_idle_timeout: shared.client_idle_timeout!,
  max_user_connections: number('serversMax'),
  max_user_client_connections: number('clientsMax'),
};

const METHODS = ['trust', 'md5', 'scram-sha-256', 'cert', 'hba'];

/** Throws an Error that says what is wrong with the file. `include`: gives the text of a file that it includes. */
export function importPgbouncer(ini: string, include: (file: string) => string): Imported {
  const sections = readIni(ini, include);
  const main = sections.get('pgbouncer') ?? new Map();
  const found = new Finding();
  const config: Json = {};
  importListen(main, config, found);
  importAuth(main, config, found);
  for (const [key, value] of withDefaults(main)) {
    if (own.has(key) || Object.hasOwn(shared, key)) continue;
    found.apply(globals, key, value, config);
  }
  const common: Json = {};
  for (const [key, value] of withDefaults(main))
    if (Object.hasOwn(shared, key)) found.apply(shared, key, value, common);
  const databases: Json = {};
  for (const [name, line] of sections.get('databases') ?? [])
    databases[name] = databaseOf(name, line, main, common, found);
  if (Object.keys(databases).length === 0) {
    found.notes.push('[databases] is empty: every name leads to 127.0.0.1:5432 until you say otherwise');
    databases['*'] = { hosts: ['127.0.0.1:5432'], ...common };
  }
  fitHosts(Object.values(databases) as Json[], found);
  for (const [name, line] of sections.get('users') ?? []) {
    const user = structuredClone((config.users as Json | undefined)?.['*'] ?? {}) as Json;
    for (const [key, value] of readConnectionString(line)) found.apply(ofUser, key, value, user, `[users] ${name}: `);
    config.users = { ...(config.users as Json | undefined), [name]: user };
  }
  for (const name of sections.keys())
    if (!['pgbouncer', 'databases', 'users'].includes(name)) found.notes.push(`[${name}] is not supported yet`);
  const told = found.notes.map((each) => `#   ${each}\n`).join('');
  const head = `# From a pgbouncer.ini, by pgweir import.\n${told === '' ? '' : `# What has no counterpart, or another one:\n${told}`}\n`;
  return { yaml: `${head}${stringify({ ...config, databases })}`, notes: found.notes, secrets: found.secrets };
}

/** Keys that are looked at together. */
const own = new Set([
  'listen_addr',
  'unix_socket_dir',
  'auth_type',
  'auth_hba_file',
  'auth_ident_file',
  'verbose',
  'admin_users',
  'auth_user',
  'auth_query',
  'auth_dbname',
]);

class Finding {
  readonly notes: string[] = [];
  readonly secrets: { file: string; text: string }[] = [];

  /** Puts what `value` means to its place in `config`, or notes that it means nothing. */
  apply(meanings: Readonly<Record<string, Meaning>>, key: string, value: string, config: Json, where = ''): void {
    const meaning = Object.hasOwn(meanings, key) ? meanings[key] : undefined;
    if (meaning === undefined) this.notes.push(`${where}${key} = ${value}: not known`);
    else if (!('path' in meaning)) this.notes.push(`${where}${key}: ${meaning.note}`);
    else if (value !== '') {
      put(config, meaning.path, meaning.as(value));
      const told = meaning.note?.(value) ?? '';
      if (told !== '') this.notes.push(`${where}${key} = ${value}: ${told}`);
    }
  }
}

function importListen(main: Section, config: Json, { notes }: Finding): void {
  const addresses = (main.get('listen_addr') ?? '').split(/[\s,]+/).filter(Boolean);
  const [first] = addresses;
  if (first === undefined) notes.push('listen_addr is empty: pgweir listens on 127.0.0.1 all the same');
  if (addresses.length > 1) notes.push(`listen_addr: one address only, or 0.0.0.0 for all; ${first} is taken`);
  put(config, 'listen.host', first === '*' ? '0.0.0.0' : first === 'localhost' ? '127.0.0.1' : first);
  const folder = main.get('unix_socket_dir') ?? SOCKET_FOLDER;
  if (folder !== '') put(config, 'listen.socketDir', folder);
  if (Number(main.get('verbose') ?? 0) > 0) put(config, 'log.level', 'debug');
}

function importAuth(main: Section, config: Json, { notes }: Finding): void {
  const type = main.get('auth_type') ?? METHOD;
  if (METHODS.includes(type)) put(config, 'auth.method', type);
  else {
    put(config, 'auth.method', 'scram-sha-256');
    notes.push(`auth_type = ${type}: not supported yet; scram-sha-256 is taken: nobody gets in who should not`);
  }
  const query = authQueryOf(main, new Map(), notes);
  if (query !== undefined) put(config, 'auth.query', query);
  if (type === 'hba') {
    for (const [key, path] of [
      ['auth_hba_file', 'auth.hba'],
      ['auth_ident_file', 'auth.ident'],
    ] as const)
      if ((main.get(key) ?? '') !== '') put(config, path, main.get(key));
  } else if (main.has('auth_hba_file')) notes.push('auth_hba_file: only auth_type = hba reads it');
  if (!['trust', 'cert'].includes(type) && query === undefined && !main.has('auth_file')) {
    put(config, 'auth.users', 'userlist.txt');
    notes.push('auth_file is not set: users are looked for in userlist.txt, in PgBouncer’s format');
  }
  const admins = (main.get('admin_users') ?? '').split(/[\s,]+/).filter(Boolean);
  put(config, 'auth.admins', admins);
  if (admins.length === 0) notes.push('admin_users is empty: nobody may use the console or set switches');
}

/** What asks for secrets: keys of the line of a database, then those for all. PgBouncer asks nobody without auth_user. */
function authQueryOf(main: Section, line: Section, notes: string[]): Json | undefined {
  const get = (key: string) => line.get(key) ?? main.get(key);
  const [user, sql, database] = [get('auth_user'), get('auth_query'), get('auth_dbname')];
  if (user === undefined || user === '') return undefined;
  if (sql !== undefined && !/\bpg_(shadow|authid|roles|user)\b|\w+\.\w+/i.test(sql))
    notes.push('auth_query: its search_path is pg_catalog here: functions and tables need their schema');
  return { user, ...(sql && { sql }), ...(database && { database }) };
}

function databaseOf(name: string, line: string, main: Section, common: Json, found: Finding): Json {
  const values = readConnectionString(line);
  const authKeys = ['auth_user', 'auth_query', 'auth_dbname'];
  const database: Json = structuredClone(common);
  const port = values.get('port') ?? '5432';
  const hosts = (values.get('host') ?? '')
    .split(',')
    .map((each) => each.trim())
    .filter(Boolean);
  if (hosts.length === 0) found.notes.push(`${name}: without host PgBouncer takes a Unix socket; 127.0.0.1 is taken`);
  if (hosts.length > 1)
    found.notes.push(
      `${name}: of ${hosts.join(', ')} only the first is taken: which is the primary is found out by a control user; add databases.*.control, then the others`,
    );
  const [host = '127.0.0.1'] = hosts;
  const address = host.includes(':') ? `[${host}]` : host;
  const password = values.get('password');
  if (password !== undefined && !values.has('user'))
    found.notes.push(`${name}: its password is of no use without user: PgBouncer does not look at it either`);
  else if (password !== undefined) {
    const file = `${name === '*' ? 'default' : name.replace(/[^\w.-]/g, '_')}.password`;
    found.secrets.push({ file, text: `${password}\n` });
    found.notes.push(`${name}: its password belongs into the file ${file}, readable by pgweir only`);
    database.passwordFile = file;
  }
  for (const [key, value] of values)
    if (!['host', 'port', 'password', ...authKeys].includes(key))
      found.apply(ofDatabase, key, value, database, `${name}: `);
  const query = authKeys.some((key) => values.has(key)) ? authQueryOf(main, values, found.notes) : undefined;
  fitSizes(database, main);
  return { hosts: [`${address}:${port.split(',')[0]}`], ...database, ...(query && { authQuery: query }) };
}

interface Sizes {
  size: number;
  sizeMin?: number;
  sizeReserve?: number;
}

/** Sizes that PgBouncer takes and we refuse, or that mean something else there. */
function fitSizes(database: Json, main: Section): void {
  const pool = database.pool as Sizes;
  if (pool.sizeMin !== undefined) pool.sizeMin = Math.min(pool.sizeMin, pool.size);
  if (Number(main.get('reserve_pool_timeout') ?? 5) === 0) delete pool.sizeReserve;
}

/** PgBouncer has no limit for the servers of a host: ours is not to be in the way of what the pools were before. */
function fitHosts(databases: readonly Json[], { notes }: Finding): void {
  const wanted = new Map<string, number>();
  const hostOf = ({ hosts }: Json) => (hosts as string[])[0]!;
  for (const database of databases) {
    const { size, sizeReserve = 0 } = database.pool as Sizes;
    wanted.set(hostOf(database), (wanted.get(hostOf(database)) ?? 0) + size + sizeReserve);
  }
  for (const database of databases)
    if (wanted.get(hostOf(database))! > HOST_SERVERS_MAX) database.serversMax = wanted.get(hostOf(database));
  for (const [host, servers] of wanted)
    notes.push(
      `${host}: at most ${Math.max(servers, HOST_SERVERS_MAX)} servers over all databases and users (databases.*.serversMax); PgBouncer has no such limit, Postgres has max_connections`,
    );
}

function withDefaults(main: Section): Section {
  return new Map([...Object.entries(defaults), ...main]);
}

function put(config: Json, path: string, value: unknown): void {
  if (value === undefined) return;
  const names = path.split('.');
  const last = names.pop()!;
  let at = config;
  for (const name of names) {
    at[name] ??= {};
    at = at[name] as Json;
  }
  at[last] = value;
}
