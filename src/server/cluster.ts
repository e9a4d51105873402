/**
 * The hosts of a database as one thing: which of them is the primary, and what happens while none is. One for each set of
 * hosts; made by server/clusters, asked and told by server/pool.
 *
 *     probes ──▶ lineage ──▶ primary moved ──▶ pools go there
 *                   └──▶ none, or one again ──▶ hold
 *     pools: connects that fail or succeed ──▶ (without probes) hold
 *
 * Without a control user there are no probes: then the only host is the primary, and it cannot be reached when no server is
 * open and a connection attempt has failed.
 */
import { lookup } from 'node:dns/promises';
import net from 'node:net';
import type { HostConfig } from '../config/schema.ts';
import type { Clock } from '../util/clock.ts';
import { isOfHost } from './connector.ts';
import type { ControlConnection } from './control.ts';
import { Hold, type HoldConfig } from './hold.ts';
import { addressOf } from './hosts.ts';
import { type Finding, type HostRole, type Lineage, LineageBook } from './lineage.ts';
import type { ServerLoginError } from './login.ts';
import { Probe } from './probe.ts';

/** A pool, as its cluster sees it. */
export interface ClusterTenant {
  /** Servers open; of these at work; and requests that wait, with their bytes. */
  readonly openCount: number;
  readonly atWork: number;
  readonly waiting: number;
  readonly waitingBytes: number;
  /** Some of those that wait were held. */
  readonly hasHeld: boolean;
  readonly size: number;
  /** The primary is another host from here on. */
  onPrimary(host: HostConfig): void;
  /** What the hold says has changed. */
  onHold(): void;
  /** Its host has other addresses than before: connect anew. */
  reconnect(): void;
}

/** What keeps requests before they come to the pools, and decides who of them is next (guard/door). */
interface Door {
  readonly waiting: number;
  readonly waitingBytes: number;
  /** Servers of a host that may be at work. */
  limitOf(address: string): number;
  /** Nobody can be given a server of the host at `address`, as long as `mayHold` may be asked; null: it is over. */
  setOutage(address: string, outage: { mayHold(bytes: number): boolean } | null, now: number): void;
  moveFrom(address: string, now: number): void;
  /** It is over with this cluster; an outage that another one has told of since goes on. */
  close(now: number): void;
}

export interface ClusterOptions {
  hosts: readonly HostConfig[];
  hold: HoldConfig;
  door: Door;
  clock: Clock;
  /** How often hosts are asked when all is well, in ms. */
  probeMs: number;
  /** Opens a control connection to a host; null: there is no control user. */
  openControl: ((host: HostConfig) => Promise<ControlConnection>) | null;
  /** What is remembered of the last primary. */
  lineage: Lineage | null;
  onLineage: (lineage: Lineage) => void;
  onEvent: (event: string, fields: Record<string, unknown>, isAlarm: boolean) => void;
}

const LOOKUP_MS = 15_000;
/** How many places of the primary's log are remembered. */
const MARKS_MAX = 128;

export class Cluster {
  readonly hold: Hold;
  readonly hosts: readonly HostConfig[];
  /** Times that the primary has moved. */
  moves = 0;
  readonly #options: ClusterOptions;
  readonly #book: LineageBook;
  readonly #probes = new Map<string, Probe>();
  readonly #tenants = new Set<ClusterTenant>();
  #primary: HostConfig;
  /** Places of the primary's log, by when it was asked; and as of when each standby has everything. */
  readonly #marks: { at: number; lsn: number }[] = [];
  readonly #fresh = new Map<string, number>();
  #lookedUpAt: number;
  /** By name: what it was looked up as. */
  readonly #names = new Map<string, string>();

  constructor(options: ClusterOptions) {
    const { hosts, lineage, openControl, clock } = options;
    this.#options = options;
    this.hosts = hosts;
    this.hold = new Hold(options.hold);
    this.#book = new LineageBook(hosts.map(addressOf), lineage);
    this.#primary = hosts.find((host) => addressOf(host) === lineage?.address) ?? hosts[0]!;
    this.#lookedUpAt = clock.now();
    if (openControl === null) return;
    for (const host of hosts) {
      const address = addressOf(host);
      const probe = new Probe(() => openControl(host), options.probeMs, {
        onFound: (finding) => {
          this.#look(() => this.#book.found(address, finding));
          this.#measure(address, finding);
        },
        onLost: (why) => this.#look(() => this.#book.lost(address, why)),
        onBlind: (why) => this.#look(() => this.#book.blind(address, why)),
      });
      this.#probes.set(address, probe);
    }
    // Of several hosts it is not known yet which one to ask.
    if (hosts.length > 1) this.hold.begin(clock.now());
    this.#tell();
  }

  /** The addresses of its hosts. */
  get name(): string {
    return this.hosts.map(addressOf).join();
  }

  /** The host that servers are to be on. */
  get primary(): HostConfig {
    return this.#primary;
  }

  /** By address. Without probes nothing is known. */
  get roles(): ReadonlyMap<string, HostRole> {
    return this.#book.roles;
  }

  /** No pool is there. */
  get isUnused(): boolean {
    return this.#tenants.size === 0;
  }

  /** One pool is there, and no other. */
  get isLast(): boolean {
    return this.#tenants.size === 1;
  }

  get isProbed(): boolean {
    return this.#probes.size > 0;
  }

  join(tenant: ClusterTenant): void {
    this.#tenants.add(tenant);
  }

  part(tenant: ClusterTenant): void {
    this.#tenants.delete(tenant);
  }

  /** May one more server be put to work? */
  get mayWork(): boolean {
    return this.hold.allowance === Number.POSITIVE_INFINITY || this.#sum((each) => each.atWork) < this.hold.allowance;
  }

  /** Why a request may not even wait; '': it may. `bytes`: its own. */
  whyNotHeld(bytes: number): string {
    const { state, config, why } = this.hold;
    if (state === 'refusing') return `no primary can be reached: ${why}`;
    if (state !== 'holding') return '';
    if (this.held >= config.requestsMax)
      return `no primary can be reached, and as many requests wait for one as may (hold.requestsMax): ${why}`;
    const { door } = this.#options;
    if (this.#sum((each) => each.waitingBytes) + door.waitingBytes + bytes > config.bytesMax)
      return `no primary can be reached, and as much waits for one as may (hold.bytesMax): ${why}`;
    return '';
  }

  /** Requests that wait for a server, or for their turn. */
  get held(): number {
    return this.#sum((each) => each.waiting) + this.#options.door.waiting;
  }

  #sum(of: (tenant: ClusterTenant) => number): number {
    let sum = 0;
    for (const tenant of this.#tenants) sum += of(tenant);
    return sum;
  }

  /** A pool could not connect. */
  onConnectFailed(failure: ServerLoginError): void {
    if (!isOfHost(failure)) {
      // Who refuses somebody is there.
      if (failure.sqlstate !== '') this.onConnected();
      return;
    }
    const now = this.#options.clock.now();
    this.hold.stumble(now);
    // The name may lead elsewhere by now.
    this.#lookedUpAt = Number.NEGATIVE_INFINITY;
    if (this.isProbed) for (const probe of this.#probes.values()) probe.hurry();
    else if (this.#sum((each) => each.openCount) === 0) this.#fail(failure.message);
  }

  onConnected(): void {
    // Where there are probes, they know better who that is.
    if (!this.isProbed) this.#reach();
  }

  /** What a standby has: everything that was committed before this time, in monotonic ms; minus infinity: nobody knows. */
  freshAsOf(host: HostConfig): number {
    const address = addressOf(host);
    if (this.roles.get(address)?.role !== 'standby') return Number.NEGATIVE_INFINITY;
    return this.#fresh.get(address) ?? Number.NEGATIVE_INFINITY;
  }

  /** How far the log of the primary is, and from when what a standby has replayed is. */
  #measure(address: string, { lsn, askedAt, timeline }: Finding): void {
    const { role } = this.roles.get(address)!;
    if (role === 'primary') {
      this.#marks.push({ at: askedAt, lsn });
      if (this.#marks.length > MARKS_MAX) this.#marks.shift();
    } else if (role === 'standby' && timeline === this.#book.lineage?.timeline) {
      const mark = this.#marks.findLast((each) => each.lsn <= lsn);
      if (mark !== undefined) this.#fresh.set(address, mark.at);
    }
  }

  #look(learn: () => void): void {
    const before = new Map([...this.roles].map(([address, { role }]) => [address, role]));
    const { lineage } = this.#book;
    learn();
    for (const [address, { role, why }] of this.roles) {
      if (role === before.get(address)) continue;
      this.#options.onEvent(
        'role changed',
        { host: address, role, before: before.get(address), why },
        role === 'refused',
      );
    }
    if (this.#book.lineage !== null && JSON.stringify(this.#book.lineage) !== JSON.stringify(lineage))
      this.#options.onLineage(this.#book.lineage);
    this.#follow();
  }

  /** Goes where the primary is. The only host there is counts as one, standby or not, unless it must not be written to. */
  #follow(): void {
    const only = this.hosts.length === 1 ? addressOf(this.hosts[0]!) : null;
    const found = only === null ? null : this.roles.get(only)!;
    // Of one that only does not say what it is a reason is known.
    const isOnlyUp = found?.role === 'standby' || (found?.role === 'unknown' && found.why !== '');
    const primary = isOnlyUp ? only : this.#book.primary;
    if (primary === null) {
      const isKnown = [...this.roles.values()].every(({ role }) => role !== 'unknown');
      const said = [...this.roles].map(
        ([address, { role, why }]) => `${address} is ${role}${why === '' ? '' : `: ${why}`}`,
      );
      // Until all were asked, only who was the primary can be missed.
      if (isKnown || this.roles.get(addressOf(this.#primary))!.role !== 'unknown') this.#fail(said.join('; '));
      else if (this.hold.isBeginning) this.hold.why = said.join('; ');
      return;
    }
    // The first that says so may be one that was replaced while nobody looked: the others are asked before it is believed.
    const isAsked = [...this.roles.values()].every(({ role, why }) => role !== 'unknown' || why !== '');
    if (this.hold.isBeginning && !isAsked) return;
    const before = addressOf(this.#primary);
    if (primary !== before) {
      this.#primary = this.hosts.find((host) => addressOf(host) === primary)!;
      this.moves++;
      this.#marks.length = 0;
      this.#fresh.clear();
      this.#options.onEvent('primary moved', { host: primary, timeline: this.#book.lineage?.timeline }, true);
      for (const tenant of this.#tenants) tenant.onPrimary(this.#primary);
      this.#options.door.moveFrom(before, this.#options.clock.now());
    }
    this.#reach();
  }

  #fail(why: string): void {
    if (!this.hold.fail(this.#options.clock.now(), why)) return;
    this.#options.onEvent('no primary', { state: this.hold.state, why }, true);
    this.#tell();
  }

  #reach(): void {
    const now = this.#options.clock.now();
    const outageMs = this.hold.outageMs(now);
    if (!this.hold.reach(now)) return;
    this.#options.onEvent('primary reached', { host: addressOf(this.#primary), outageMs: Math.round(outageMs) }, false);
    this.#tell();
  }

  #tell(): void {
    const { door, clock } = this.#options;
    const outage = this.hold.state === 'holding' ? { mayHold: (bytes: number) => this.whyNotHeld(bytes) === '' } : null;
    door.setOutage(addressOf(this.#primary), outage, clock.now());
    for (const tenant of this.#tenants) tenant.onHold();
  }

  /** The control user logs in to another database from here on. */
  askAnew(): void {
    for (const probe of this.#probes.values()) probe.reconnect();
  }

  /** Called every fraction of a second. */
  tick(now: number): void {
    const isUrgent = this.hold.state !== 'open';
    for (const probe of this.#probes.values()) probe.tick(now, isUrgent);
    if (isUrgent && this.hold.tick(now, this.#most, this.#hasHeld)) this.#tell();
    if (now - this.#lookedUpAt < LOOKUP_MS) return;
    this.#lookedUpAt = now;
    void this.#lookUp(this.#primary.host);
  }

  /** Servers that may be at work at all. */
  get #most(): number {
    const servers = this.#sum((each) => each.size);
    return Math.max(1, Math.min(servers, this.#options.door.limitOf(addressOf(this.#primary))));
  }

  get #hasHeld(): boolean {
    for (const tenant of this.#tenants) if (tenant.hasHeld) return true;
    return false;
  }

  /** Servers stay where a name has led to; when it leads elsewhere, they are replaced as they become free. */
  async #lookUp(name: string): Promise<void> {
    if (net.isIP(name) !== 0 || name.startsWith('/')) return;
    try {
      const found = (await lookup(name, { all: true }))
        .map(({ address }) => address)
        .sort()
        .join();
      const before = this.#names.get(name);
      this.#names.set(name, found);
      if (before === undefined || before === found) return;
      this.#options.onEvent('name leads elsewhere', { name, found, before }, false);
      for (const tenant of this.#tenants) tenant.reconnect();
    } catch {
      // What is open stays open; what is opened anew will say what is wrong.
    }
  }

  /** It is over: whoever its outage keeps is for another cluster to judge. */
  close(): void {
    for (const probe of this.#probes.values()) probe.close();
    const { door, clock } = this.#options;
    door.close(clock.now());
  }
}
