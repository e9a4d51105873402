/**
 * The cache that a fleet shares: Redis or Valkey, alone, in a cluster or behind sentinels. Owned by cache/caches; each database has a Space in it.
 *
 *     {pgweir:<place>}:e         epoch: part of the names of answers, so that after another one nothing of before is read
 *                     :v:<oid>   version of a table: random when it is new, so that one that was evicted does not come back as it was
 *                     :w:<oid>   writes of it that are under way: nothing that reads it is stored meanwhile
 *                     :d:<epoch>:<key>   an answer (cache/envelope), with the versions that its tables had before it was asked for
 *
 * The one idea: losing it is the normal case. Nothing waits for it longer than a read is worth, what it says is proved before it is
 * believed, and how much it is asked depends on how it has behaved (cache/arming).
 *
 * Invariants: at most IN_FLIGHT commands are under way; no command is queued while there is no connection, or sent again after one was lost.
 */
import { createHash, randomBytes } from 'node:crypto';
import type { Cluster, Redis } from 'ioredis';
import CircuitBreaker from 'opossum';
import * as encode from '../protocol/encode.ts';
import type { Clock } from '../util/clock.ts';
import { messageOf } from '../util/errors.ts';
import { Arming, type Result } from './arming.ts';
import { connectOptions, type Place, placeOf } from './backend-url.ts';
import { type Enveloped, openEnvelope, seal } from './envelope.ts';

export interface BackendOptions {
  url: string;
  /** ms that a read may take at the longest. */
  budget: number;
  password: string | undefined;
  /** Of the MAC; '': none. */
  secret: string;
  clock: Clock;
  onEvent: (event: string, fields: Record<string, unknown>) => void;
  /** How many times faster than in earnest it is trusted again; 1 but for tests. */
  pace?: number;
}

/** More commands than these make the backend slow, and its slowness a fault (cache.md §3.2). */
const IN_FLIGHT = 64;
const BYTES_IN_FLIGHT = 8 * 1024 * 1024;
const PROBE_MS = 2_000;
/** A command whose time is over by more than this was held up here, where its timer ran late. */
const LAG_MS = 5;
/** A write that nobody ends is forgotten after so long. */
const MARKER_MS = 60_000;
/** What the backend cannot do now, whoever asks. */
const UNFIT = /^(LOADING|READONLY|MASTERDOWN|NOAUTH|WRONGPASS|NOPERM|MOVED|CLUSTERDOWN)/;

export class Backend {
  readonly arming: Arming;
  readonly place: Place;
  readonly counts = {
    reads: 0,
    hits: 0,
    misses: 0,
    late: 0,
    errors: 0,
    full: 0,
    wrong: 0,
    foreign: 0,
    writes: 0,
    writeErrors: 0,
  };
  inFlight = 0;
  readonly #options: BackendOptions;
  readonly #client: Redis | Cluster;
  readonly #probe: CircuitBreaker<[], number>;
  readonly #spaces = new Set<Space>();
  #bytesInFlight = 0;
  #isProbing = false;
  #isClosed = false;

  constructor(options: BackendOptions) {
    this.#options = options;
    this.arming = new Arming(options.budget, { pace: options.pace ?? 1 });
    this.place = placeOf(options.url);
    this.#client = connectOptions(this.place, options);
    this.#client.on('error', () => {}); // It is told by 'close'.
    this.#client.on('close', () => this.#change(() => this.arming.onLost('the connection is lost', this.now)));
    this.#probe = new CircuitBreaker(() => this.#canary(), {
      timeout: PROBE_MS,
      resetTimeout: 1,
      volumeThreshold: 0,
      errorThresholdPercentage: 1,
      rollingPercentilesEnabled: false,
      enableSnapshots: false,
    });
    this.arming.begin(this.now);
  }

  get now(): number {
    return this.#options.clock.now();
  }

  get budget(): number {
    return this.#options.budget;
  }

  /**
   * `name`: what tells databases apart for all who share the backend. Answers that were asked for before `since`, in wall-clock ms, are
   * not believed: who comes to a space does not know what could not be told before.
   */
  space(name: string, since: number): Space {
    const space = new Space(this, createHash('sha256').update(name).digest('hex').slice(0, 16), since);
    this.#spaces.add(space);
    return space;
  }

  leave(space: Space): void {
    this.#spaces.delete(space);
  }

  close(): void {
    this.#isClosed = true;
    this.#probe.shutdown();
    this.#client.disconnect();
  }

  tick(now: number): void {
    this.#change(() => this.arming.tick(now));
    for (const space of this.#spaces) space.tick();
    if (this.#isProbing || !this.arming.wantsProbe(now)) return;
    this.#isProbing = true;
    void this.#tryCanary();
  }

  // --- The canary -----------------------------------------------------------------------------------------------

  async #tryCanary(): Promise<void> {
    try {
      const ms = await this.#probe.fire();
      this.#change(() => this.arming.onCanary('', ms, this.now));
    } catch (thrown) {
      const { code } = thrown as { code?: string };
      // Too soon after the last one.
      if (code !== 'EOPENBREAKER') {
        this.#client.disconnect();
        this.#change(() => this.arming.onCanary(messageOf(thrown), 0, this.now));
      }
    }
    this.#isProbing = false;
  }

  /** Gives ms that a value takes there and back; throws what speaks against the backend. */
  async #canary(): Promise<number> {
    const client = this.#client;
    if (client.status !== 'ready') await client.connect();
    const info = String(await client.info());
    const role = /^role:(\w+)/m.exec(info)?.[1];
    if (role !== undefined && role !== 'master') throw new Error(`it is a ${role}, and cannot be written to`);
    const key = randomBytes(32);
    const body = Buffer.concat([encode.commandComplete('SELECT 0'), encode.readyForQuery()]);
    const content = { key, epoch: 0n, createdAt: 0, ttlMs: 0, costMs: 0, versions: [], descriptionEnd: 0, body };
    const name = `pgweir:canary:${key.toString('hex').slice(0, 16)}`;
    const since = this.now;
    await client.set(name, seal(content, this.#options.secret), 'PX', 10_000);
    const back = await client.getBuffer(name);
    const ms = (this.now - since) / 2;
    const opened = back === null ? null : openEnvelope(back, key, this.#options.secret);
    if (opened?.kind !== 'ok') throw new Error('it does not give back what it was given');
    await client.del(name);
    return ms;
  }

  #change(act: () => void): void {
    const before = this.arming.state;
    act();
    const { state, why } = this.arming;
    if (state !== before && !this.#isClosed) this.#options.onEvent('cache backend', { state, why });
  }

  // --- Commands -------------------------------------------------------------------------------------------------

  /** Is there room for one more command, which carries so many bytes? */
  hasRoom(bytes: number): boolean {
    const isFull = this.inFlight >= IN_FLIGHT || this.#bytesInFlight + bytes > BYTES_IN_FLIGHT;
    this.arming.onFull(isFull, this.now);
    if (isFull) this.counts.full++;
    return !isFull;
  }

  /** Runs one command; `done` is called once, with null when there is no answer. Never throws. */
  run<T>(bytes: number, command: (client: Redis | Cluster) => Promise<T>, done: (answer: T | null) => void): void {
    const since = this.now;
    this.inFlight++;
    this.#bytesInFlight += bytes;
    const end = (answer: T | null, problem: string) => {
      const now = this.now;
      this.inFlight--;
      this.#bytesInFlight -= bytes;
      const ms = now - since;
      this.#change(() => {
        if (UNFIT.test(problem)) this.arming.onLost(problem, now);
        else this.arming.onResult(this.#resultOf(problem, ms), ms, now);
      });
      done(answer);
    };
    command(this.#client).then(
      (answer) => end(answer, ''),
      (thrown: unknown) => {
        this.counts.errors++;
        end(null, messageOf(thrown));
      },
    );
  }

  #resultOf(problem: string, ms: number): Result {
    // One that is full can still be read.
    if (problem === '' || problem.startsWith('OOM')) return 'good';
    return ms > this.budget + LAG_MS ? 'unclear' : 'bad';
  }

  /** What came back is not what was asked for: the connection that it came on is not to be trusted. */
  onWrong(why: string): void {
    this.counts.wrong++;
    this.#change(() => this.arming.onWrong(why, this.now));
    // What else it has of before is not to be believed either.
    if (this.arming.state === 'open') for (const space of this.#spaces) space.invalidate('all');
    if (why === 'key') this.#client.disconnect();
  }

  get secret(): string {
    return this.#options.secret;
  }

  after(ms: number, run: () => void): () => void {
    return this.#options.clock.after(ms, run);
  }

  wall(): number {
    return this.#options.clock.wall();
  }
}

/** What was found for a question. */
export interface Found {
  content: Enveloped | null;
  /** What the tables' versions are there, for storing an answer; null: not all are known. */
  versions: Versions | null;
}

export interface Versions {
  epoch: bigint;
  of: readonly { oid: number; version: bigint }[];
}

/** One database in the backend. */
export class Space {
  /** Wall-clock ms since when all writes were told, or are known to be untold. */
  readonly since: number;
  readonly #backend: Backend;
  readonly #prefix: string;
  /** As it was when last read; null: not known. */
  #epoch: bigint | null = null;
  /** A write could not be told: nothing of before may count. */
  #mustRotate = false;
  #isRotating = false;
  /** Commands that tell of writes, and have not been answered. */
  #telling = 0;

  constructor(backend: Backend, name: string, since: number) {
    this.#backend = backend;
    this.since = since;
    this.#prefix = `{pgweir:${name}}:`;
  }

  get backend(): Backend {
    return this.#backend;
  }

  /** Every write so far has been told: who comes after may believe what is there. */
  get hasToldAll(): boolean {
    return !this.#mustRotate && !this.#isRotating && this.#telling === 0;
  }

  mayRead(key: Buffer): boolean {
    return !this.#mustRotate && this.#backend.arming.mayRead(hashOf(key));
  }

  close(): void {
    this.#backend.leave(this);
  }

  tick(): void {
    if (this.#mustRotate && this.#backend.arming.isTold && !this.#isRotating) this.#rotate();
  }

  /** Looks for the answer to the question with this digest; `done` is called once, after `deadlineMs` at the latest. */
  read(key: Buffer, oids: readonly number[], deadlineMs: number, done: (found: Found) => void): void {
    const backend = this.#backend;
    const nothing: Found = { content: null, versions: null };
    if (!backend.hasRoom(0)) return done(nothing);
    backend.counts.reads++;
    let isDone = false;
    const finish = (found: Found) => {
      if (isDone) return;
      isDone = true;
      cancel();
      done(found);
    };
    const cancel = backend.after(deadlineMs, () => {
      backend.counts.late++;
      finish(nothing);
    });
    const names = [this.#answerTo(key, this.#epoch), `${this.#prefix}e`, ...oids.map((oid) => this.#versionOf(oid))];
    backend.run(
      0,
      (client) => client.mgetBuffer(names),
      (answer) => {
        if (answer === null || answer.length !== names.length) return finish(nothing);
        const [sealed, epoch, ...versions] = answer;
        const known = this.#known(epoch ?? null, oids, versions);
        if (known === null) this.#plant(oids);
        const isOfEpoch = known?.epoch === this.#epoch;
        this.#epoch = known?.epoch ?? null;
        if (sealed == null || known === null || !isOfEpoch) {
          backend.counts.misses++;
          return finish({ content: null, versions: known });
        }
        finish({ content: this.#open(sealed, key, known), versions: known });
      },
    );
  }

  #open(sealed: Buffer, key: Buffer, { epoch, of }: Versions): Enveloped | null {
    const { counts, secret } = this.#backend;
    const opened = openEnvelope(sealed, key, secret);
    if (opened.kind === 'foreign') {
      counts.foreign++;
      return null;
    }
    if (opened.kind === 'bad') {
      this.#backend.onWrong(opened.why);
      return null;
    }
    const { content } = opened;
    const isCurrent =
      content.createdAt >= this.since &&
      content.epoch === epoch &&
      content.versions.length === of.length &&
      of.every(
        ({ oid, version }, at) => content.versions[at]!.oid === oid && content.versions[at]!.version === version,
      );
    if (isCurrent) counts.hits++;
    else counts.misses++;
    return isCurrent ? content : null;
  }

  #known(epoch: Buffer | null, oids: readonly number[], versions: readonly (Buffer | null)[]): Versions | null {
    if (epoch === null || versions.some((version) => version === null)) return null;
    try {
      return {
        epoch: BigInt(epoch.toString('latin1')),
        of: oids.map((oid, at) => ({ oid, version: BigInt(versions[at]!.toString('latin1')) })),
      };
    } catch {
      this.#backend.onWrong('versions');
      return null;
    }
  }

  /** Gives tables that have none a version, and the space an epoch. */
  #plant(oids: readonly number[]): void {
    if (!this.#backend.hasRoom(0)) return;
    this.#backend.run(
      0,
      (client) => {
        const pipeline = client.pipeline();
        pipeline.set(`${this.#prefix}e`, randomVersion(), 'NX');
        for (const oid of oids) pipeline.set(this.#versionOf(oid), randomVersion(), 'NX');
        return pipeline.exec();
      },
      () => {},
    );
  }

  /** Stores an answer that was asked for when the versions were `versions`, unless a write of its tables is under way. */
  store(content: Omit<Enveloped, 'epoch' | 'versions'>, { epoch, of }: Versions): void {
    const backend = this.#backend;
    if (this.#mustRotate || !backend.arming.mayWrite(hashOf(content.key))) return;
    const sealed = seal({ ...content, epoch, versions: of }, backend.secret);
    if (!backend.hasRoom(sealed.length)) return;
    const name = this.#answerTo(content.key, epoch);
    backend.run(
      sealed.length,
      async (client) => {
        const markers = of.length === 0 ? [] : await client.mget(of.map(({ oid }) => `${this.#prefix}w:${oid}`));
        if (markers.some((marker) => Number(marker) > 0)) return null;
        return client.set(name, sealed, 'PX', Math.max(1, Math.round(content.ttlMs)));
      },
      (answer) => {
        if (answer === 'OK') backend.counts.writes++;
        else backend.counts.writeErrors++;
      },
    );
  }

  /** These tables are about to be written to: what is read of them from here on may be either. */
  announce(oids: readonly number[]): void {
    this.#tell(oids, (pipeline, oid) => {
      pipeline.incr(`${this.#prefix}w:${oid}`);
      pipeline.pexpire(`${this.#prefix}w:${oid}`, MARKER_MS);
    });
  }

  /** The write is over. */
  settle(oids: readonly number[]): void {
    this.#tell(oids, (pipeline, oid) => pipeline.decr(`${this.#prefix}w:${oid}`));
  }

  /** These tables have been written to. */
  invalidate(oids: readonly number[] | 'all'): void {
    if (oids === 'all') {
      this.#mustRotate = true;
      this.tick();
    } else this.#tell(oids, () => {});
  }

  #tell(oids: readonly number[], more: (pipeline: ReturnType<Redis['pipeline']>, oid: number) => void): void {
    const backend = this.#backend;
    if (!backend.arming.isTold || !backend.hasRoom(0)) {
      this.#mustRotate = true;
      return;
    }
    this.#telling++;
    backend.run(
      0,
      (client) => {
        const pipeline = client.pipeline();
        for (const oid of oids) {
          pipeline.incr(this.#versionOf(oid));
          more(pipeline, oid);
        }
        return pipeline.exec();
      },
      (answer) => {
        this.#telling--;
        if (answer === null || answer.some(([error]) => error !== null)) this.#mustRotate = true;
      },
    );
  }

  #rotate(): void {
    if (!this.#backend.hasRoom(0)) return;
    this.#isRotating = true;
    this.#mustRotate = false;
    this.#backend.run(
      0,
      (client) => client.set(`${this.#prefix}e`, randomVersion()),
      (answer) => {
        this.#isRotating = false;
        if (answer !== 'OK') this.#mustRotate = true;
      },
    );
  }

  #answerTo(key: Buffer, epoch: bigint | null): string {
    return `${this.#prefix}d:${epoch}:${key.toString('base64')}`;
  }

  #versionOf(oid: number): string {
    return `${this.#prefix}v:${oid}`;
  }
}

function randomVersion(): string {
  return String(randomBytes(6).readUIntBE(0, 6));
}

/** From 0 to 1. */
function hashOf(key: Buffer): number {
  return key.readUInt32BE(0) / 2 ** 32;
}
