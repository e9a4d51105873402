/**
 * What is counted of one pool of servers: plain numbers, raised where it happens (server/pool, server/connection,
 * client/session, client/request) and read when somebody looks (ops/metrics, ops/console). Made by server/pool.
 *
 * The one idea: whoever counts only adds to a field; names, units and labels are given when it is read.
 */
import type { PinReason } from '../sql/effects.ts';
import type { TrafficCounts } from './connection.ts';
import { type RefusalReason, refusalReasons } from './refusals.ts';

export interface PoolCounts extends TrafficCounts {
  /** Leases given. */
  leases: number;
  /** Requests that shared a server with others. */
  shared: number;
  /** Milliseconds that requests have waited for a server, in all. */
  waitMs: number;
  connects: number;
  connectFailures: number;
  refused: Record<RefusalReason, number>;
  timeouts: Record<TimeLimit, number>;
  pins: Record<PinReason, number>;
  /** Milliseconds in which servers ran queries, and in which transactions were open. */
  queryMs: number;
  transactionMs: number;
  logins: number;
  clientParses: number;
  serverParses: number;
  binds: number;
}

/** Limits that end something. */
export type TimeLimit =
  | 'query'
  | 'transaction'
  | 'idleInTransaction'
  | 'clientIdle'
  /** The client's own statement_timeout, which its server does not keep. */
  | 'deadline'
  /** What was cancelled did not end, and its server was closed. */
  | 'cancel'
  | 'connect';

export const timeLimits: readonly TimeLimit[] = [
  'query',
  'transaction',
  'idleInTransaction',
  'clientIdle',
  'deadline',
  'cancel',
  'connect',
];
export const pinReasons: readonly PinReason[] = [
  'session',
  'listen',
  'lock',
  'temp',
  'prepare',
  'hold',
  'load',
  'sequence',
  'seed',
  'setting',
  'function',
  'opaque',
  'replication',
  'encoding',
  'desync',
];

const zeroes = <Key extends string>(keys: readonly Key[]) =>
  Object.fromEntries(keys.map((key) => [key, 0])) as Record<Key, number>;

/** Counts of a pool that nothing has happened in. */
export function noCounts(): PoolCounts {
  return {
    transactions: 0,
    queries: 0,
    received: 0,
    sent: 0,
    errors: 0,
    failures: 0,
    leases: 0,
    shared: 0,
    waitMs: 0,
    connects: 0,
    connectFailures: 0,
    refused: zeroes(refusalReasons),
    timeouts: zeroes(timeLimits),
    pins: zeroes(pinReasons),
    queryMs: 0,
    transactionMs: 0,
    logins: 0,
    clientParses: 0,
    serverParses: 0,
    binds: 0,
  };
}
