/**
 * Every SQLSTATE that the proxy itself answers with, and the type of such an answer. A refusal is a value: whoever
 * decides returns it, client/session sends it.
 *
 * Codes: Postgres manual, Appendix A. Refused work is class 53 with severity ERROR on purpose: connection pools drop
 * connections on classes 08 and 57P, which would turn shedding into a reconnect storm.
 */

export const SqlState = {
  /** 53000: refused work (shed, waited too long). Clients may retry after the hint. */
  InsufficientResources: '53000',
  /** 53300: FATAL at startup, `listen.clientsMax` is reached. */
  TooManyConnections: '53300',
  /** 53400: a bound of the proxy on what one session may keep. */
  ConfigurationLimit: '53400',
  /** 54000: FATAL, a message beyond `listen.messageMax`. */
  ProgramLimit: '54000',
  /** 57P01: FATAL, drain, or the server was lost inside a transaction. */
  AdminShutdown: '57P01',
  /** 57P03: FATAL at startup, no server of this pool has ever answered. */
  CannotConnectNow: '57P03',
  /** 55000: FATAL at startup, the database is disabled (as Postgres, when it has no datallowconn). */
  NotAccepting: '55000',
  /** 57P05: FATAL, `pool.clientIdleMax`. */
  IdleSessionTimeout: '57P05',
  /** 25P03: FATAL, `pool.idleInTransactionMax`. */
  IdleInTransactionTimeout: '25P03',
  /** 25P04: FATAL, `pool.transactionMax`. */
  TransactionTimeout: '25P04',
  /** 25P02: a statement in a failed transaction. */
  InFailedTransaction: '25P02',
  /** 57014: cancelled by the client while it waited for a server. */
  QueryCanceled: '57014',
  /** 08007: FATAL, the server was lost during COMMIT: its outcome is unknown. */
  TransactionResolutionUnknown: '08007',
  /** 08P01: FATAL, the client broke the protocol. */
  ProtocolViolation: '08P01',
  /** 0A000: what the pool mode or the proxy does not allow; also a cached plan whose result changed its type. */
  FeatureNotSupported: '0A000',
  /** 28P01: wrong password. */
  InvalidPassword: '28P01',
  /** 28000: this user may not log in this way. */
  InvalidAuthorization: '28000',
  /** 3D000: a database that no key of `databases` names. */
  InvalidCatalogName: '3D000',
  /** 22023: a startup parameter that cannot be read. */
  InvalidParameterValue: '22023',
  /** F0000: RELOAD has found something wrong. */
  ConfigFileError: 'F0000',
  /** 42601: an unknown console command. */
  SyntaxError: '42601',
  /** 42501: a console command that this user may not give. */
  InsufficientPrivilege: '42501',
  /** XX000: a bug in the proxy; the session ends, the process does not. */
  InternalError: 'XX000',
} as const;

/**
 * Does an error speak of the server's own health, and not of what it was asked for? Connections (08), resources (53), shutdown
 * and crash (57P01 to 57P03); and 57014, when it is a time limit of the database that has struck, and neither somebody who cancelled
 * nor a limit of the client's own (`isOwn`).
 */
export function isUnhealthy(sqlstate: string, isOwn: boolean): boolean {
  if (sqlstate === SqlState.QueryCanceled) return !isOwn;
  return /^(08(?!P01)|53|57P0[123])/.test(sqlstate);
}

export type SqlStateCode = (typeof SqlState)[keyof typeof SqlState];

/** An answer that is an error: what happened (message), why (detail), what to do (hint). */
export interface Refusal {
  severity: 'ERROR' | 'FATAL';
  sqlstate: SqlStateCode;
  message: string;
  detail?: string;
  hint?: string;
  /** Of refused work: by which it is asked about (`pgweir explain`), and why in one word. */
  id?: number;
  reason?: string;
}

/** A refusal that ends the session. */
export function fatal(sqlstate: SqlStateCode, message: string, more: { detail?: string; hint?: string } = {}): Refusal {
  return { severity: 'FATAL', sqlstate, message, ...more };
}

/** A refusal that leaves the session usable. */
export function error(sqlstate: SqlStateCode, message: string, more: Omit<Partial<Refusal>, 'severity'> = {}): Refusal {
  return { severity: 'ERROR', sqlstate, message, ...more };
}
