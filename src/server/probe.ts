/**
 * Asks one host, again and again, what it is: primary or standby, of which cluster, on which timeline. Owned and ticked by
 * server/cluster; its connection is one of its own, so that pools that are full do not blind it.
 *
 * The one idea: a host is lost when it could not be asked twice in a row, on two connections; a single slow answer is none. One that
 * answers with an error (a wrong password, no such database, no connection left) is there: it is only not known what it is.
 */
import { messageOf } from '../util/errors.ts';
import type { ControlConnection } from './control.ts';
import type { Finding } from './lineage.ts';

export interface ProbeEvents {
  onFound(finding: Finding): void;
  onLost(why: string): void;
  /** It answers, and does not say what it is. */
  onBlind(why: string): void;
}

/** While something is wrong. */
const URGENT_MS = 250;
const FAILURES = 2;

/**
 * The timeline of a primary is in the names of its WAL files: that of the last checkpoint would be late after a promotion. The place
 * where the next record goes is behind all that was committed, whatever synchronous_commit says.
 */
const SQL = `SELECT pg_is_in_recovery()::int, (SELECT system_identifier FROM pg_control_system()),
  CASE WHEN pg_is_in_recovery()
    THEN coalesce((SELECT received_tli FROM pg_stat_wal_receiver WHERE status = 'streaming'), 0)
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END,
  CASE WHEN NOT pg_is_in_recovery() THEN NULL
    WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
    ELSE 1000 * extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END,
  pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END, '0/0')`;

export class Probe {
  readonly #open: () => Promise<ControlConnection>;
  readonly #events: ProbeEvents;
  readonly #everyMs: number;
  #connection: ControlConnection | null = null;
  #isRunning = false;
  #isClosed = false;
  /** What is being asked is the last of its connection. */
  #isLast = false;
  #dueAt = Number.NEGATIVE_INFINITY;
  #failures = 0;

  /** `everyMs`: when all is well. */
  constructor(open: () => Promise<ControlConnection>, everyMs: number, events: ProbeEvents) {
    this.#everyMs = everyMs;
    this.#open = open;
    this.#events = events;
  }

  /** `isUrgent`: something is wrong, with this host or with another. */
  tick(now: number, isUrgent: boolean): void {
    if (this.#isRunning || this.#isClosed || now < this.#dueAt) return;
    // Not all of many proxies at the same time.
    const every = isUrgent || this.#failures > 0 ? Math.min(URGENT_MS, this.#everyMs) : this.#everyMs;
    this.#dueAt = now + every * (0.8 + 0.4 * Math.random());
    this.#isRunning = true;
    void this.#ask(now);
  }

  /** Somebody has seen it fail: it is asked at the next tick. */
  hurry(): void {
    this.#dueAt = Number.NEGATIVE_INFINITY;
  }

  async #ask(askedAt: number): Promise<void> {
    try {
      this.#connection ??= await this.#open();
      const [row] = await this.#connection.query(SQL);
      const [recovery, systemId, timeline, lag, lsn] = row!;
      this.#failures = 0;
      if (this.#isClosed) return;
      this.#events.onFound({
        isInRecovery: Number(recovery) === 1,
        systemId: String(systemId),
        timeline: Number(timeline),
        lagMs: lag == null ? null : Math.max(0, Number(lag)),
        lsn: Number(lsn ?? 0),
        askedAt,
      });
    } catch (thrown) {
      this.#drop();
      if (this.#isClosed) return;
      if (isAnswer(thrown)) {
        this.#failures = 0;
        this.#events.onBlind(messageOf(thrown));
      } else if (++this.#failures >= FAILURES) this.#events.onLost(messageOf(thrown));
      else this.hurry();
    } finally {
      this.#isRunning = false;
      if (this.#isClosed || this.#isLast) this.#drop();
      this.#isLast = false;
    }
  }

  #drop(): void {
    this.#connection?.close();
    this.#connection = null;
  }

  /** It is asked on another connection from here on. */
  reconnect(): void {
    if (this.#isRunning) this.#isLast = true;
    else this.#drop();
  }

  close(): void {
    this.#isClosed = true;
    if (!this.#isRunning) this.#drop();
  }
}

/** An error that the database itself has sent, and not because it is starting or stopping. */
function isAnswer(thrown: unknown): boolean {
  const { code } = thrown as { code?: unknown };
  return typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code) && !/^(E|57P0|08)/.test(code);
}
