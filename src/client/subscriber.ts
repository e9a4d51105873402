/**
 * What one session listens to by its pool's channels (server/channels), and what it has heard and not been told yet. Made by
 * client/session when its client first listens.
 *
 * The one idea: a client is told between transactions and never within a reply, as by Postgres itself ("Asynchronous
 * Operations"); until then what it has heard is kept, up to a bound.
 */
import type { ChannelListener, Channels } from '../server/channels.ts';

export interface SubscriberClient {
  /** It may be told something. */
  onNotified(): void;
  /** LISTEN has taken effect, or a server of its own must be asked. */
  onSubscribed(isListening: boolean): void;
  /** It has been told nothing for too long. */
  onTooMuch(): void;
}

/** More channels than this are for a server of the client's own, as if nobody shared. */
const CHANNELS_MAX = 1_000;
/** Bytes that are kept for a client that is busy. */
const KEPT_MAX = 1024 * 1024;

export class Subscriber implements ChannelListener {
  readonly #channels: Channels;
  readonly #client: SubscriberClient;
  readonly #subscribed = new Set<string>();
  #kept: Buffer[] = [];
  #keptBytes = 0;
  /** What it has asked for and waits for, and whether it has not had that before. */
  #wanted: { channel: string; isNew: boolean } | null = null;

  constructor(channels: Channels, client: SubscriberClient) {
    this.#channels = channels;
    this.#client = client;
  }

  /** There is room for this channel, or it listens to it already. */
  mayListen(channel: string): boolean {
    return this.#subscribed.size < CHANNELS_MAX || this.#subscribed.has(channel);
  }

  get hasNews(): boolean {
    return this.#keptBytes > 0;
  }

  /** True: it listens. False: `onSubscribed` will be called. */
  listen(channel: string): boolean {
    const isNew = !this.#subscribed.has(channel);
    this.#subscribed.add(channel);
    if (this.#channels.subscribe(channel, this)) return true;
    this.#wanted = { channel, isNew };
    return false;
  }

  /** Null: to all. */
  unlisten(channel: string | null): void {
    for (const each of channel === null ? [...this.#subscribed] : [channel]) {
      if (this.#subscribed.delete(each)) this.#channels.unsubscribe(each, this);
    }
    // What was heard before is told, as by Postgres.
  }

  /** It waits no longer for LISTEN to take effect. */
  giveUp(): void {
    if (this.#wanted?.isNew) this.unlisten(this.#wanted.channel);
    this.#wanted = null;
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
    this.#client.onSubscribed(isListening);
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
