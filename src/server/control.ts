/**
 * Connections of the control user, for questions of the proxy's own: what a host is (server/probe), the catalogue, metrics. Opened by
 * app. node-postgres speaks there: these connections are few, and no client's bytes pass.
 */
import pg from 'pg';
import { messageOf } from '../util/errors.ts';
import { isPlain, type ServerTarget, tlsOptionsOf } from './login.ts';

/** Values are as node-postgres reads them. */
export interface ControlConnection {
  query(sql: string, values?: readonly string[]): Promise<(string | null)[][]>;
  close(): void;
}

/** Longest time for the login, and for one question. */
const CONTROL_MS = 5_000;

/** Opens one to `target`, with TLS as pools have it. */
export async function openControl(
  target: ServerTarget,
  password: string | undefined,
  more: pg.ClientConfig = {},
): Promise<ControlConnection> {
  const client = await openClient(target, password, { query_timeout: CONTROL_MS, ...more });
  return {
    query: async (sql, values) =>
      (await client.query<(string | null)[]>({ text: sql, rowMode: 'array', ...(values && { values: [...values] }) }))
        .rows,
    close: () => void client.end().catch(() => {}),
  };
}

/** A client of node-postgres, logged in to `target`, with TLS as pools have it. */
export async function openClient(
  target: ServerTarget,
  password: string | undefined,
  more: pg.ClientConfig & { replication?: string },
): Promise<pg.Client> {
  if (isPlain(target)) return logIn(target, password, false, more);
  try {
    return await logIn(target, password, tlsOptionsOf(target), more);
  } catch (thrown) {
    // With `prefer` a server without TLS is spoken to in clear text.
    if (target.tls.mode !== 'prefer' || !messageOf(thrown).includes('does not support SSL')) throw thrown;
    return logIn(target, password, false, more);
  }
}

async function logIn(
  { host: { host, port }, database, user, tls }: ServerTarget,
  password: string | undefined,
  ssl: ReturnType<typeof tlsOptionsOf> | false,
  more: pg.ClientConfig,
): Promise<pg.Client> {
  const client = new pg.Client({
    host,
    port,
    user,
    password,
    database,
    ssl,
    connectionTimeoutMillis: CONTROL_MS,
    application_name: 'pgweir control',
    enableChannelBinding: tls.channelBinding !== 'disable',
    ...(ssl === false ? {} : { sslnegotiation: tls.negotiation }),
    ...more,
  });
  client.on('error', () => {});
  try {
    await client.connect();
  } catch (thrown) {
    client.end().catch(() => {});
    throw thrown;
  }
  return client;
}
