/**
 * All ledgers of the configuration, the hosts that live on them, and where their samples come from. Made by app.
 *
 *     sources ──poller──▶ samples ──▶ HostCredits of each host that has the ledger ──▶ gate, ops
 */
import type { Config, LedgerConfig as LedgerKeys, ReadingConfig } from '../config/schema.ts';
import type { Clock } from '../util/clock.ts';
import { type Demand, HostCredits, type LedgerConfig } from './host.ts';
import type { Learned } from './ledger.ts';
import { type PollCounts, Poller } from './poller.ts';
import { CloudWatch } from './sources/cloudwatch.ts';
import { HttpSource } from './sources/http.ts';
import { PrometheusSource } from './sources/prometheus.ts';
import type { Reading, Source } from './sources/source.ts';
import { SqlSource } from './sources/sql.ts';

/** What the book needs of the house. */
export interface BookHouse {
  clock: Clock;
  /** Runs SQL as the control user of a database. */
  query: (database: string, sql: string) => Promise<(string | null)[][]>;
  /** What waits for the host at an address. */
  demandOf: (address: string) => Demand;
  onProblem: (source: string, problem: string) => void;
  /** How many times faster than the clock the time of ledgers runs: for rehearsals. */
  pace: number;
}

/** Which of a config's hosts live on which ledgers: pairs of address and names. */
export type Residents = readonly (readonly [address: string, ledgers: readonly string[]])[];

const HOUR_S = 3600;
/** One server at work is thought to use up a reserve of unknown size in so many seconds. */
const UNKNOWN_S = 4 * HOUR_S;

export class CreditBook {
  readonly #house: BookHouse;
  #key = '';
  #poller: Poller;
  #hosts = new Map<string, HostCredits>();
  /** By address, then ledger. */
  #learned: Readonly<Record<string, Readonly<Record<string, Learned>>>>;

  constructor(house: BookHouse, learned: Readonly<Record<string, Readonly<Record<string, Learned>>>>) {
    this.#house = house;
    this.#learned = learned;
    this.#poller = new Poller(() => house.clock.wall(), house.onProblem);
  }

  /** What is learned is kept; estimates start anew with the next sample if anything about ledgers has changed. */
  configure(config: Config, residents: Residents): void {
    const key = JSON.stringify([config.ledgers, residents, config.instances]);
    if (key === this.#key) return;
    this.#key = key;
    this.#learned = this.save();
    this.#poller.close();
    this.#poller = new Poller(() => this.#house.clock.wall(), this.#house.onProblem);
    const before = this.#hosts;
    this.#hosts = new Map();
    for (const [address, names] of residents) {
      if (names.length === 0) continue;
      const configs = names.map((name) => ledgerOf(name, config.ledgers[name]!));
      const own = JSON.stringify([configs, config.instances]);
      const known = before.get(address);
      if (known?.key === own) {
        this.#hosts.set(address, known);
        continue;
      }
      const demand = () => this.#house.demandOf(address);
      const learned = this.#learned[address] ?? {};
      const host = new HostCredits(configs, demand, {
        learned,
        instances: config.instances,
        key: own,
        pace: this.#house.pace,
      });
      host.tick(this.#house.clock.now()); // From the first moment on it allows no more than it should.
      this.#hosts.set(address, host);
    }
    this.#addSources(config, residents);
  }

  #addSources(config: Config, residents: Residents): void {
    const { clock, pace } = this.#house;
    const regions = new Map<string, CloudWatch>();
    const monotonic = ({ observedAt }: Reading, lag: number) => clock.now() - (clock.wall() - observedAt) - lag;
    for (const [name, keys] of Object.entries(config.ledgers)) {
      const hosts = residents.filter(([, names]) => names.includes(name)).map(([address]) => this.#hosts.get(address)!);
      if (hosts.length === 0) continue;
      const metric = hastened(keys.metric, pace);
      this.#poller.add(`${name}.metric`, this.#sourceOf(metric, regions), everyOf(metric), (reading) => {
        const sample = { value: reading.value, observedAt: monotonic(reading, lagOf(metric)) };
        for (const host of hosts) host.observe(name, sample, clock.now());
      });
      if (keys.backlog !== undefined) {
        const jobs = hastened(keys.backlog.metric, pace);
        this.#poller.add(`${name}.backlog`, this.#sourceOf(jobs, regions), everyOf(jobs), ({ value }) => {
          for (const host of hosts) host.observeBacklog(name, value, clock.now());
        });
      }
      if (keys.load === undefined) continue;
      const load = hastened(keys.load, pace);
      const span = periodOf(load);
      this.#poller.add(`${name}.load`, this.#sourceOf(load, regions), everyOf(load), (reading) => {
        const to = monotonic(reading, lagOf(load));
        // Percent of all vCPUs, as credits per second: a credit is a minute of one.
        const rate = ((reading.value / 100) * keys.vcpus!) / 60;
        for (const host of hosts) host.observeSpend(name, to - span, to, rate);
      });
    }
  }

  #sourceOf(reading: ReadingConfig, regions: Map<string, CloudWatch>): Source {
    const wall = () => this.#house.clock.wall();
    switch (reading.source) {
      case 'prometheus':
        return new PrometheusSource(reading.url, reading.query);
      case 'http':
        return new HttpSource(reading.url, reading.value, reading.time ?? null, wall);
      case 'sql':
        return new SqlSource(() => this.#house.query(reading.database, reading.query), wall);
      case 'cloudwatch': {
        let region = regions.get(reading.region);
        if (region === undefined) {
          region = new CloudWatch(reading.region, wall);
          regions.set(reading.region, region);
        }
        return region.source(reading);
      }
      default:
        return reading satisfies never;
    }
  }

  /** Called often. */
  tick(now: number): void {
    this.#poller.tick(now);
    for (const host of this.#hosts.values()) host.tick(now);
  }

  /** By address. */
  get hosts(): ReadonlyMap<string, HostCredits> {
    return this.#hosts;
  }

  get sources(): ReadonlyMap<string, PollCounts> {
    return this.#poller.counts;
  }

  /** What is learned, by address and ledger. */
  save(): Record<string, Readonly<Record<string, Learned>>> {
    const saved = { ...this.#learned };
    for (const [address, host] of this.#hosts)
      saved[address] = Object.fromEntries(host.ledgers.map(({ config, learned }) => [config.name, learned]));
    return saved;
  }

  close(): void {
    this.#poller.close();
  }
}

/** A reading in which everything happens `pace` times as fast. */
function hastened<T extends ReadingConfig>(reading: T, pace: number): T {
  if (reading.source === 'cloudwatch') return { ...reading, period: reading.period / pace };
  return { ...reading, every: reading.every / pace, lag: reading.lag / pace };
}

function everyOf(reading: ReadingConfig): number {
  // CloudWatch has a new point once a period: it is asked more often, because that comes at an unknown time.
  return reading.source === 'cloudwatch' ? reading.period / 4 : reading.every;
}

function periodOf(reading: ReadingConfig): number {
  return reading.source === 'cloudwatch' ? reading.period : reading.every;
}

function lagOf(reading: ReadingConfig): number {
  return reading.source === 'cloudwatch' ? 0 : reading.lag;
}

function ledgerOf(name: string, keys: LedgerKeys): LedgerConfig {
  const { unit, earnPerHour, spendPerHour, vcpus, metric } = keys;
  const capacity = keys.capacity ?? 100;
  const isCpu = unit === 'cpu-credits';
  const spend = spendPerHour ?? (isCpu ? 60 * vcpus! : null);
  return {
    name,
    capacity,
    earn: earnPerHour === undefined ? null : earnPerHour / HOUR_S,
    spendMax: spend === null ? null : spend / HOUR_S,
    // A second of work is at most a second of one vCPU; of what else it costs nothing is known yet.
    kappa: isCpu ? 1 / 60 : capacity / UNKNOWN_S,
    quantum: unit === 'percent' ? 1 : capacity / 2000,
    reserve: keys.reserve * capacity,
    horizon: keys.horizon / 1000,
    mode: keys.mode,
    onMissing: keys.onMissing,
    effect: keys.effect,
    period: periodOf(metric),
    backlog: keys.backlog === undefined ? null : { class: keys.backlog.class, period: periodOf(keys.backlog.metric) },
  };
}
