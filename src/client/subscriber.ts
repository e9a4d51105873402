/**
 * What one session listens to by its pool's channels (server/channels), and what it has heard and not been told yet. Made by
 * client/session when its client first listens.
 *
 *     LISTEN ──▶ 'done' │ 'waits' ──onWaited──▶ listens, or a server of its own is asked      UNLISTEN ──▶ 'done'
 *
 * The one idea: LISTEN needs no server of the client's own; one connection listens for all clients of the pool. A client is told
 * between transactions and never within a reply, as by Postgres itself ("Asynchronous Operations"); until then what it has heard
 * is kept, up to a bound.
 *
 * What it asks its own server for about channels counts when that transaction has committed: that is where it hears from then
 * on, or does not.
 */
import { Status } from '../protocol/messages.ts';
import type { Refusal } from '../protocol/sqlstate.ts';
import type { ChannelListener } from '../server/channels.ts';
import type { ServerPool } from '../server/pool.ts';
import type { Settings } from '../server/settings.ts';
import type { Listening } from '../sql/channel.ts';

export interface SubscriberClient {
  /** It may be told something. */
  onNotified(): void;
  /** LISTEN has taken effect, or a server of its own must be asked: the held message is to be handled again. */
  onWaited(): void;
  /** It has been told nothing for too long. */
  onTooMuch(): void;
}

/** More channels than this are for a server of the client's own, as if nobody shared. */
const CHANNELS_MAX = 1_000;
/** Bytes that are kept for a client that is busy. */
const KEPT_MAX = 1024 * 1024;

/** 'own': that is for a server of the client's own. */
type Heard = 'done' | 'waits' | 'own';

/** What is heard is in the encoding of the connection that listens. */
export function hearsAs(settings: Settings, { channels, baseline }: ServerPool): boolean {
  const encoding = channels.encoding ?? baseline?.reported.get('client_encoding');
  return settings.reported.get('client_encoding') === encoding;
}

export class Subscriber implements ChannelListener {
  readonly #pool: ServerPool;
  readonly #client: SubscriberClient;
  readonly #subscribed = new Set<string>();
  #kept: Buffer[] = [];
  #keptBytes = 0;
  /** What it has asked for and waits for, and whether it has not had that before. */
  #wanted: { channel: string; isNew: boolean } | null = null;
  /** The LISTEN that is held is for a server of its own: the other connection could not. */
  mustAskServer = false;
  /** LISTEN and UNLISTEN that have run on its own server in the transaction that is open. */
  #ran: Listening[] = [];

  constructor(pool: ServerPool, client: SubscriberClient) {
    this.#pool = pool;
    this.#client = client;
  }

  get hasNews(): boolean {
    return this.#keptBytes > 0;
  }

  /** LISTEN or UNLISTEN is asked for. 'waits': `onWaited` will be called. */
  ask(listening: Listening): Heard {
    if (listening.kind === 'listen') return this.#listen(listening.channel);
    this.unlisten(listening.channel);
    return 'done';
  }

  #listen(channel: string): Heard {
    const isNew = !this.#subscribed.has(channel);
    if (isNew && this.#subscribed.size >= CHANNELS_MAX) return 'own';
    this.#subscribed.add(channel);
    if (this.#pool.channels.subscribe(channel, this)) return 'done';
    this.#wanted = { channel, isNew };
    return 'waits';
  }

  /** Null: to all. */
  unlisten(channel: string | null): void {
    for (const each of channel === null ? [...this.#subscribed] : [channel]) {
      if (this.#subscribed.delete(each)) this.#pool.channels.unsubscribe(each, this);
    }
    // What was heard before is told, as by Postgres.
  }

  /** It waits no longer for LISTEN to take effect. */
  giveUp(): void {
    if (this.#wanted?.isNew) this.unlisten(this.#wanted.channel);
    this.#wanted = null;
  }

  /** LISTEN has waited for `waitedMs`, its client would for `deadlineMs` (0: not known). 'own': a server of its own will do. */
  tire(waitedMs: number, deadlineMs: number): 'waits' | 'own' | Refusal {
    const { config, isHeld, isUnreachable, lastFailure } = this.#pool;
    const isLate = deadlineMs > 0 && waitedMs > deadlineMs;
    if (!isUnreachable && !isLate && (waitedMs < config.waitMax || isHeld)) return 'waits';
    this.giveUp();
    // No room for one more connection, say.
    if (!isUnreachable && !isLate) {
      this.mustAskServer = true;
      return 'own';
    }
    const why = `the connection that listens is not there${lastFailure === '' ? '' : `: ${lastFailure}`}`;
    return this.#pool.refuse(isUnreachable ? 'hold' : 'deadline', why);
  }

  /** These have run on its own server. */
  ran(listened: readonly Listening[]): void {
    this.#ran.push(...listened);
  }

  /** Its own server owes nothing, in this transaction status. `hasCommitted`: what ran last would have committed. */
  follow(status: number, hasCommitted: boolean): void {
    if (this.#ran.length === 0 || status === Status.Transaction) return;
    const ran = this.#ran.splice(0);
    if (status === Status.Failed || !hasCommitted) return;
    for (const { channel } of ran) this.unlisten(channel);
  }

  /** All that it has heard. */
  take(): Buffer[] {
    const kept = this.#kept;
    this.#kept = [];
    this.#keptBytes = 0;
    return kept;
  }

  onSubscribed(channel: string, isListening: boolean): void {
    if (!isListening) this.#subscribed.delete(channel);
    if (this.#wanted?.channel !== channel) return;
    this.#wanted = null;
    this.mustAskServer = !isListening;
    this.#client.onWaited();
  }

  notify(bytes: Buffer): void {
    this.#kept.push(bytes);
    this.#keptBytes += bytes.length;
    if (this.#keptBytes > KEPT_MAX) this.#client.onTooMuch();
    else this.#client.onNotified();
  }

  close(): void {
    this.unlisten(null);
    this.#kept = [];
    this.#keptBytes = 0;
  }
}
