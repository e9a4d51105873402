/**
 * What makes a server safe for the next client: whatever its last client left running is cancelled and drained,
 * an open transaction is rolled back, and after a pin the session is discarded. Started by server/stock when a client
 * goes away or a pin ends; the server's holder meanwhile.
 *
 *     running → (cancel, CopyFail, Sync) → quiet → ROLLBACK → idle → DISCARD ALL → free
 *
 * ROLLBACK and DISCARD ALL are separate messages, because DISCARD ALL cannot run in a transaction and a simple query
 * of several statements is one. If the server is not free within the limit it is closed: keeping servers avoids
 * connection storms, but never at the price of doubt.
 */
import * as encode from '../protocol/encode.ts';
import { ClientMessage, Status } from '../protocol/messages.ts';
import type { Owner, ServerConnection } from './connection.ts';

/** Longest time for the whole of it. */
const CLEANUP_MS = 5_000;
/** Longest time for an answer to nothing at all. */
const CHECK_MS = 2_000;
/** Longest time for what a client sent before its Terminate, before it is cancelled. */
const PATIENCE_MS = 60_000;
/** Each cancels one statement of an abandoned pipeline; a longer pipeline costs its server. */
const CANCELS_MAX = 3;

export class Cleanup implements Owner {
  readonly #server: ServerConnection;
  readonly #done: (server: ServerConnection, isClean: boolean) => void;
  #startedAt: number;
  #isPatient: boolean;
  #isDiscardWanted: boolean;
  #isCheckWanted: boolean;
  readonly #limitMs: number;
  /** Cancel requests that may still be sent, and how much was outstanding when the last one was. */
  #cancelsLeft = CANCELS_MAX;
  #sizeBefore = Number.POSITIVE_INFINITY;
  #isRollbackSent = false;
  #hasFailed = false;

  /** `isDiscardWanted`: the session may have state that ROLLBACK does not undo. `isCheckWanted`: does it answer at all? */
  constructor(
    server: ServerConnection,
    options: {
      isDiscardWanted: boolean;
      isPatient: boolean;
      isCheckWanted: boolean;
      now: number;
      done: (server: ServerConnection, isClean: boolean) => void;
    },
  ) {
    this.#server = server;
    this.#isDiscardWanted = options.isDiscardWanted;
    this.#isPatient = options.isPatient;
    this.#isCheckWanted = options.isCheckWanted;
    this.#limitMs = options.isCheckWanted ? CHECK_MS : CLEANUP_MS;
    this.#startedAt = options.now;
    this.#done = options.done;
  }

  /** Begins. The server's former holder has no more say. */
  start(former: Owner | null): void {
    const { outstanding } = this.#server;
    this.#server.holder = this;
    if (former !== null) outstanding.abandon(former);
    this.#server.resume();
    this.onProgress();
  }

  deliver(): boolean {
    return true;
  }

  onProgress(): void {
    const { outstanding } = this.#server;
    if (outstanding.isLost || this.#hasFailed) return this.#finish(false);
    if (outstanding.isCopyIn) {
      this.#server.send(encode.copyFail('the client has gone away'));
      outstanding.isCopyIn = false; // What follows is an error, which ends the COPY.
      outstanding.push('CopyEnd', this, 'swallow', null, null);
      return;
    }
    if (outstanding.isBatchOpen) this.#failBatch();
    if (outstanding.isFlushWanted || outstanding.isDiscarding) this.#sync();
    if (outstanding.size > 0) {
      if (!this.#isPatient && !this.#isRollbackSent) this.#cancel();
      return;
    }
    if (this.#server.isCanceling) return; // A late cancel must not hit what comes next.
    if (outstanding.status !== Status.Idle) return this.#rollBack();
    if (this.#isDiscardWanted) return this.#discard();
    if (this.#isCheckWanted) return this.#check();
    this.#finish(true);
  }

  /** Cancels what runs, and when that has ended and more runs, that too, a few times. */
  #cancel(): void {
    const { size } = this.#server.outstanding;
    if (this.#server.isCanceling || size >= this.#sizeBefore) return;
    if (this.#cancelsLeft-- === 0) return this.#finish(false);
    this.#sizeBefore = size;
    this.#server.cancel(this);
  }

  /** A batch without Sync has committed nothing, and Sync would commit it: let it fail first. */
  #failBatch(): void {
    const name = 'pgweir_nothing';
    if (this.#server.outstanding.push('Describe', this, 'swallow', null, null)) {
      this.#server.send(encode.aboutStatement(ClientMessage.Describe, name));
    }
  }

  #sync(): void {
    if (this.#server.outstanding.push('Sync', this, 'swallow', null, null)) this.#server.send(encode.sync);
  }

  #rollBack(): void {
    if (this.#isRollbackSent) return this.#finish(false);
    this.#isRollbackSent = true;
    this.#run('ROLLBACK');
  }

  #discard(): void {
    this.#isDiscardWanted = false;
    this.#isRollbackSent = true; // What runs from here on is ours: nothing to cancel.
    this.#run('DISCARD ALL');
  }

  #check(): void {
    this.#isCheckWanted = false;
    this.#isRollbackSent = true;
    this.#run('');
  }

  #run(sql: string): void {
    const note = {
      dropped: () => {
        this.#hasFailed = true;
      },
    };
    this.#server.ask(sql, this, note);
  }

  #finish(isClean: boolean): void {
    this.#server.holder = null;
    this.#done(this.#server, isClean);
  }

  /** Ends what takes too long. Called by ServerPool.tick. */
  tick(now: number): void {
    if (now - this.#startedAt <= (this.#isPatient ? PATIENCE_MS : this.#limitMs)) return;
    if (!this.#isPatient) return this.#finish(false);
    this.#isPatient = false;
    this.#startedAt = now;
    this.onProgress();
  }

  onWritable(): void {}
  onParameter(): void {}
  onTag(): void {}

  onLost(): void {
    this.#done(this.#server, false);
  }
}
