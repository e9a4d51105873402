/**
 * Cancel keys. A client never sees the key of a server: it gets one of ours, with which it can cancel only what its own
 * session runs, on whatever server that happens to be. Called by client/login (a CancelRequest arrives) and
 * client/session.
 *
 *     process id, 31 bits:  instance 7 | worker 6 | slot 18        secret: 32 bits in protocol 3.0, 224 bits in 3.2
 *
 * Instance and worker stand in the key from the start, so that a request that reaches the wrong process can be passed
 * on. The races are closed in server/connection (a request leaves only while its session still holds the server, and
 * a server is not given to anybody else while one is on its way).
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';

const SLOTS = 1 << 18;
const WORKER_BITS = 6;
const SLOT_BITS = 18;
const PID_BYTES = 4;
const SECRET_BYTES_3_0 = 4;
const SECRET_BYTES_3_2 = 28;

/** Who holds a key: only it can be cancelled with it. */
export interface Cancelable {
  cancel(): void;
}

export class CancelKeys {
  readonly #prefix: number;
  readonly #holders = new Map<number, { key: Buffer; holder: Cancelable | null }>();
  #next = 0;
  /** Requests that named a key of ours, and requests that did not. */
  readonly counts = { matched: 0, unknown: 0 };

  /** `instance` and `worker` tell processes apart that share an address. */
  constructor(instance: number, worker: number) {
    this.#prefix = ((instance & 0x7f) << (WORKER_BITS + SLOT_BITS)) | ((worker & 0x3f) << SLOT_BITS);
  }

  /** A new key for a client that speaks minor version `minor`. */
  issue(minor: number): Buffer {
    do this.#next = (this.#next + 1) % SLOTS;
    while (this.#holders.has(this.#next));
    const key = Buffer.allocUnsafeSlow(PID_BYTES + (minor >= 2 ? SECRET_BYTES_3_2 : SECRET_BYTES_3_0));
    randomBytes(key.length).copy(key);
    key.writeInt32BE(this.#prefix | this.#next, 0);
    this.#holders.set(this.#next, { key, holder: null });
    return key;
  }

  /** From here on the key cancels what `holder` runs. */
  hold(key: Buffer, holder: Cancelable): void {
    this.#holders.set(slotOf(key), { key, holder });
  }

  /** The key is void. */
  revoke(key: Buffer): void {
    this.#holders.delete(slotOf(key));
  }

  /** A CancelRequest arrived. A key that is not ours does nothing, as in Postgres. */
  request(key: Buffer): void {
    const known = this.#holders.get(slotOf(key));
    if (known === undefined || known.key.length !== key.length || !timingSafeEqual(known.key, key)) {
      this.counts.unknown++;
      return;
    }
    this.counts.matched++;
    known.holder?.cancel();
  }
}

function slotOf(key: Buffer): number {
  return key.readInt32BE(0) & (SLOTS - 1);
}
