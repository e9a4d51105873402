/**
 * LISTEN for all clients of a pool on one connection: who listens to what, and the connection that hears it. Owned by server/pool,
 * asked by client/subscriber.
 *
 *     subscribe ──▶ LISTEN on the connection ──▶ confirmed ──▶ every NotificationResponse of the channel to its listeners
 *
 * The one idea: a client that listens would keep a server for itself and use it for nothing; one connection can listen for all. It is
 * opened when somebody listens, and closed when nobody has for a while.
 *
 * When the connection is lost it is opened again, where the primary is by then, and listens to the same channels; what was said
 * meanwhile nobody has heard, and listeners are told so with a notice.
 */
import * as encode from '../protocol/encode.ts';
import { emptyFrame, FrameReader } from '../protocol/frame.ts';
import { ServerMessage, stringEnd } from '../protocol/messages.ts';
import type { Owner, ServerConnection } from './connection.ts';

export interface ChannelListener {
  /** Its channel is listened to, or will not be: then a server of its own must say why. */
  onSubscribed(channel: string, isListening: boolean): void;
  /** A whole NotificationResponse, or a notice that some may be missing. */
  notify(bytes: Buffer): void;
}

export interface ChannelCounts {
  /** Notifications heard, and given to clients. */
  received: number;
  delivered: number;
  /** Times that the connection was lost while somebody listened. */
  lost: number;
}

/** Without listeners the connection is kept for so long. */
const IDLE_MS = 10_000;
const RETRY_MS = 500;
const HEADER = 5;
const PID = 4;
const NOTIFICATION_MAX = 64 * 1024;
const MISSED = encode.notice(
  'the connection that listens was lost and is there again: notifications may have been missed meanwhile',
);

export class Channels implements Owner {
  readonly #openConnection: () => Promise<ServerConnection | null>;
  /** Who listens to what. */
  readonly #listeners = new Map<string, Set<ChannelListener>>();
  /** What the connection listens to. */
  readonly #confirmed = new Set<string>();
  /** What somebody has been told that it is listened to. */
  readonly #known = new Set<string>();
  /** Of the connection that is open: each has its own. */
  #reader = reader();
  #server: ServerConnection | null = null;
  #isOpening = false;
  #isClosed = false;
  #hasLost = false;
  /** RETRY_MS after it was last opened: what lived for longer is opened again at once. */
  #dueAt = 0;
  #idleSince = 0;
  readonly counts: ChannelCounts = { received: 0, delivered: 0, lost: 0 };

  /** `open`: opens the connection; null: not now. It is given back by closing it. */
  constructor(open: () => Promise<ServerConnection | null>) {
    this.#openConnection = open;
  }

  /** Clients that listen, each once for each of its channels. */
  get size(): number {
    let sum = 0;
    for (const { size } of this.#listeners.values()) sum += size;
    return sum;
  }

  /** The connection is open. */
  get isOpen(): boolean {
    return this.#server !== null;
  }

  /** What the connection reports its encoding to be, in which it hears; null while it is not open. */
  get encoding(): string | null {
    return this.#server?.settings.reported.get('client_encoding') ?? null;
  }

  /** True: `listener` hears `channel` from here on. False: `onSubscribed` will be called. */
  subscribe(channel: string, listener: ChannelListener): boolean {
    let listeners = this.#listeners.get(channel);
    if (listeners === undefined) {
      listeners = new Set();
      this.#listeners.set(channel, listeners);
      this.#ask(channel);
    }
    listeners.add(listener);
    return this.#confirmed.has(channel);
  }

  unsubscribe(channel: string, listener: ChannelListener): void {
    const listeners = this.#listeners.get(channel);
    if (!listeners?.delete(listener) || listeners.size > 0) return;
    this.#listeners.delete(channel);
    this.#confirmed.delete(channel);
    this.#known.delete(channel);
    this.#server?.ask(`UNLISTEN ${quote(channel)}`, this, null);
  }

  /** Opens the connection when somebody listens, closes it when nobody does. */
  tick(now: number): void {
    if (this.#listeners.size > 0) {
      this.#idleSince = now;
      if (this.#server === null && !this.#isOpening && now >= this.#dueAt) void this.#open(now);
    } else if (this.#server !== null && now - this.#idleSince > IDLE_MS) this.#server.close('nobody listens any more');
    this.#server?.tick(now);
  }

  /** For server/silence, and for who counts servers. */
  get server(): ServerConnection | null {
    return this.#server;
  }

  async #open(now: number): Promise<void> {
    this.#isOpening = true;
    this.#dueAt = now + RETRY_MS;
    try {
      const server = await this.#openConnection();
      if (server === null) return;
      if (this.#isClosed) return server.close('closed by the pool');
      this.#server = server;
      this.#reader = reader();
      server.holder = this;
      for (const channel of this.#listeners.keys()) this.#ask(channel);
    } finally {
      this.#isOpening = false;
    }
  }

  #ask(channel: string): void {
    const server = this.#server;
    // Who has given up and come back meanwhile waits for another answer.
    const listeners = this.#listeners.get(channel);
    server?.ask(`LISTEN ${quote(channel)}`, this, {
      done: () => {
        if (this.#listeners.get(channel) === listeners) this.#onListening(channel);
        this.#tellMissed();
      },
      dropped: () => {
        if (!server.isClosed && this.#listeners.get(channel) === listeners) this.#onRefused(channel, server);
      },
    });
  }

  #onListening(channel: string): void {
    this.#known.add(channel);
    this.#confirmed.add(channel);
    for (const listener of [...this.#listeners.get(channel)!]) listener.onSubscribed(channel, true);
  }

  /** Whoever has been told that he hears must not go deaf: then it is tried again, elsewhere perhaps. */
  #onRefused(channel: string, server: ServerConnection): void {
    if (this.#known.has(channel)) return server.close('it cannot listen');
    const listeners = this.#listeners.get(channel)!;
    this.#listeners.delete(channel);
    for (const listener of listeners) listener.onSubscribed(channel, false);
  }

  /** All that was listened to before the connection was lost is listened to again. */
  #tellMissed(): void {
    if (!this.#hasLost || this.#confirmed.size < this.#listeners.size) return;
    this.#hasLost = false;
    for (const listener of new Set([...this.#listeners.values()].flatMap((each) => [...each]))) listener.notify(MISSED);
  }

  /** Closes the connection; it is opened anew if somebody listens, where the pool's servers are by then. */
  reconnect(reason: string): void {
    this.#server?.close(reason);
  }

  close(reason: string): void {
    this.#isClosed = true;
    this.#server?.close(reason);
  }

  // --- From the server ------------------------------------------------------------------------------------------

  deliver(bytes: Buffer): boolean {
    const frame = emptyFrame();
    this.#reader.push(bytes);
    let found = this.#reader.next(frame);
    for (; found === 'frame'; found = this.#reader.next(frame)) {
      const { type, source, start, end } = frame;
      if (type !== ServerMessage.NotificationResponse) continue; // A notice, a parameter: nobody's.
      const nameEnd = stringEnd(source, start + HEADER + PID, end);
      const listeners = this.#listeners.get(source.toString('latin1', start + HEADER + PID, nameEnd));
      this.counts.received++;
      if (listeners === undefined) continue;
      const message = Buffer.from(source.subarray(start, end));
      for (const listener of listeners) listener.notify(message);
      this.counts.delivered += listeners.size;
    }
    if (found !== 'starved') this.#server?.close('it sent a message of an impossible length');
    return true;
  }

  onLost(): void {
    this.#server = null;
    this.#confirmed.clear();
    this.#hasLost ||= this.#listeners.size > 0;
    if (this.#listeners.size > 0) this.counts.lost++;
  }

  onProgress(): void {}
  onWritable(): void {}
  onParameter(): void {}
  onTag(): void {}
}

function reader(): FrameReader {
  return new FrameReader((_, size) => size, NOTIFICATION_MAX);
}

function quote(channel: string): string {
  return `"${channel.replaceAll('"', '""')}"`;
}
