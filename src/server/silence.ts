/**
 * Finds out what it means that a host says nothing although it should: it thinks, or nobody is there. One for each host
 * (server/hosts), told by its pools.
 *
 *     a server owes an answer and is silent ──SILENT_MS──▶ others of the host speak ──▶ is its own connection acknowledged?
 *                                                  └─▶ all are silent ──▶ can one log in?
 *
 * The one idea: silence proves nothing, a long query is silent too. So it is only a reason to ask: seldom, once for a whole host,
 * and by other means. What has been silent since before the answer "nobody is there" is closed, for nothing will come of it;
 * the system itself would notice after a quarter of an hour.
 */

/** A server that owes something. */
export interface SilentServer {
  readonly localPort: number;
  /** ms. */
  silentFor(now: number): number;
  close(reason: string): void;
}

const SILENT_MS = 10_000;
/** Time between two questions, and after an answer that all is well. */
const AGAIN_MS = 5_000;
const WELL_MS = 30_000;

export class Silence {
  /** Local ports of connections whose bytes arrive nowhere (util/unacknowledged). */
  readonly #unacknowledged: () => Promise<ReadonlySet<number>>;
  #heardAt = Number.NEGATIVE_INFINITY;
  #dueAt = Number.NEGATIVE_INFINITY;
  #isAsking = false;
  /** And how to find out whether anybody is there: tries to log in, and rejects when nobody is. */
  readonly #suspects = new Map<SilentServer, () => Promise<void>>();
  /** Servers closed because nothing would have come of them. */
  closed = 0;

  constructor(unacknowledged: () => Promise<ReadonlySet<number>>) {
    this.#unacknowledged = unacknowledged;
  }

  /** The host has sent something. */
  heard(now: number): void {
    this.#heardAt = now;
  }

  /** `server` owes something; called again and again while it does. */
  watch(server: SilentServer, now: number, check: () => Promise<void>): void {
    if (server.silentFor(now) >= SILENT_MS) this.#suspects.set(server, check);
  }

  /** Called when all pools have told what they see. */
  tick(now: number): void {
    if (this.#suspects.size > 0 && !this.#isAsking && now >= this.#dueAt) {
      this.#isAsking = true;
      this.#dueAt = now + AGAIN_MS;
      const [check] = this.#suspects.values();
      void this.#ask(now, [...this.#suspects.keys()], check!);
    }
    this.#suspects.clear();
  }

  async #ask(now: number, suspects: readonly SilentServer[], check: () => Promise<void>): Promise<void> {
    try {
      const ports = await this.#unacknowledged();
      const deaf = suspects.filter(({ localPort }) => ports.has(localPort));
      for (const server of deaf) this.#close(server, 'what was sent to it is not acknowledged');
      if (deaf.length === suspects.length || now - this.#heardAt < SILENT_MS) return;
      try {
        await check();
        this.#dueAt = now + WELL_MS;
      } catch {
        if (this.#heardAt > now) return; // There is somebody after all.
        for (const server of suspects)
          if (server.silentFor(now) >= SILENT_MS) this.#close(server, 'its host does not answer');
      }
    } finally {
      this.#isAsking = false;
    }
  }

  #close(server: SilentServer, why: string): void {
    this.closed++;
    server.close(`the server is silent, and ${why}`);
  }
}
