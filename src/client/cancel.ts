/**
 * Cancel keys. A client never sees the key of a server: it gets one of ours, with which it can cancel only what its own
 * session runs, on whatever server that happens to be. Called by client/login (a CancelRequest arrives) and
 * client/listener.
 *
 *     process id, 31 bits:  instance 7 | worker 6 | slot 18        secret: 32 bits in protocol 3.0, 224 bits in 3.2
 *
 * Instance and worker stand in the key from the start, so that a request that reaches the wrong process can be passed
 * on. The races are closed in server/connection (a request leaves only while its session still holds the server, and
 * a server is not given to anybody else while one is on its way).
 *
 * A key is kept as a Latin-1 string of its bytes: a Buffer would cost every idle client ten times as much.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { ServerTarget } from '../server/login.ts';

const SLOTS = 1 << 18;
const WORKER_BITS = 6;
const SLOT_BITS = 18;
const PID_BYTES = 4;
const SECRET_BYTES_3_0 = 4;
const SECRET_BYTES_3_2 = 28;

/** Process id and secret, byte by byte. */
export type CancelKey = string;

/** Who holds a key: only it can be cancelled with it, or reached by its number. */
export interface Cancelable {
  readonly key: CancelKey;
  cancel(): void;
  /** Ends it (57P01), with this text. */
  end(message: string): void;
  readonly user: string;
  /** Where its servers are, and who they think that it is. */
  readonly pool: { readonly target: ServerTarget };
}

export class CancelKeys {
  readonly #prefix: number;
  readonly #holders = new Map<number, Cancelable>();
  #next = 0;
  /** Requests that named a key of ours, and requests that did not. */
  readonly counts = { matched: 0, unknown: 0 };
  /** Where requests go that are about nobody here: to the process before, whose clients are still there. */
  #pass: (key: Buffer) => void = () => {};

  /** `instance` and `worker` tell processes apart that share an address. */
  constructor(instance: number, worker: number) {
    this.#prefix = ((instance & 0x7f) << (WORKER_BITS + SLOT_BITS)) | ((worker & 0x3f) << SLOT_BITS);
  }

  /** A new key for a client that speaks minor version `minor`; it is void until `hold` is called. */
  issue(minor: number): CancelKey {
    do this.#next = (this.#next + 1) % SLOTS;
    while (this.#holders.has(this.#next));
    const key = randomBytes(PID_BYTES + (minor >= 2 ? SECRET_BYTES_3_2 : SECRET_BYTES_3_0));
    key.writeInt32BE(this.#prefix | this.#next, 0);
    return key.toString('latin1');
  }

  /** From here on its key cancels what `holder` runs. */
  hold(holder: Cancelable): void {
    this.#holders.set(slotOf(holder.key), holder);
  }

  /** The key of `holder` is void. */
  revoke(holder: Cancelable): void {
    this.#holders.delete(slotOf(holder.key));
  }

  /** Who was told at its login that it is process `pid`; null: nobody here. */
  holderOf(pid: number): Cancelable | null {
    return (pid & ~(SLOTS - 1)) === this.#prefix ? (this.#holders.get(pid & (SLOTS - 1)) ?? null) : null;
  }

  passUnknown(pass: (key: Buffer) => void): void {
    this.#pass = pass;
  }

  /** A CancelRequest arrived. A key that is not ours does nothing, as in Postgres. */
  request(key: Buffer): void {
    const holder = this.#holders.get(slotOf(key.toString('latin1')));
    const own = holder === undefined ? null : Buffer.from(holder.key, 'latin1');
    if (own === null || own.length !== key.length || !timingSafeEqual(own, key)) {
      this.counts.unknown++;
      return this.#pass(key);
    }
    this.counts.matched++;
    holder!.cancel();
  }
}

function slotOf(key: CancelKey): number {
  return Buffer.from(key, 'latin1').readInt32BE(0) & (SLOTS - 1);
}
