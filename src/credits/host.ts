/**
 * All reserves of one host, and the budget that follows from them: the tightest ledger rules. Made by credits/book for each host
 * that has ledgers; handed by app to guard/gate (as its Budget), fed by credits/poller, read by ops.
 *
 *     samples ──▶ ledger ──▶ glide ──▶ work allowed ──▶ tokens ──▶ isOpenFor
 *     work done ────┘           └──▶ forecast, zone, verdict ──▶ people
 *
 * Invariants: pure, time is an argument; critical work is never held back; an observing ledger holds nothing back; with no
 * sample, or one that is too old, a ledger allows what `onMissing` says and no more.
 */
import { type Forecast, Forecaster, feasibility, type Verdict } from './forecast.ts';
import { Glide } from './glide.ts';
import { type Estimate, type Learned, Ledger, type LedgerSpec, type Sample } from './ledger.ts';
import { WorkLog } from './work.ts';
import { type Zone, ZoneKeeper } from './zone.ts';

export interface LedgerConfig extends LedgerSpec {
  /** Units; seconds. */
  reserve: number;
  horizon: number;
  mode: 'observe' | 'warn' | 'enforce';
  onMissing: 'baseline' | 'open' | 'closed';
  effect: 'throttle' | 'bill';
  /** How often a sample is due, in ms. */
  period: number;
  /** The class of the jobs that wait outside the proxy, and how often their number is read, in ms; null: it is not. */
  backlog: { class: string; period: number } | null;
}

/** What is waiting, as guard/gate knows it: in ms of servers' work. */
export interface Demand {
  /** Waiting for a permit, of what is not critical. */
  backlogMs: number;
  /** What one request of a class costs. */
  costOf: (className: string) => number;
}

export interface LedgerView {
  config: LedgerConfig;
  estimate: Estimate | null;
  learned: Learned;
  /** Units per second that may be spent; servers at work that are not critical. */
  spend: number;
  work: number;
  /** Units that it would take to do all that waits, here and outside. */
  backlog: number;
  zone: Zone;
  forecast: Forecast;
  verdict: Verdict;
  /** Why it has no sample to go by; '': it has. */
  missing: '' | 'never' | 'stale' | 'suspect';
  sampleAgeMs: number | null;
  received: Record<string, number>;
}

const TICK_MS = 1_000;
/** Tokens are kept for so long: what is not used while something else is in the way is lost. */
const BURST_MS = 250;
/** When none has come for so many periods there is none. (Research, missing inputs.) */
const STALE_PERIODS = 6;
/** A metric that is read every half a minute may be new every five only: that is its period. At most so long, in ms. */
const PERIOD_MAX_MS = 900_000;
/** How fast the mean of the time between two new samples follows. */
const PERIOD_FOLLOW = 0.3;
/** The most that can be owed, in ms of a server: what was spent beyond is in the balance. */
const DEBT_MS = 10_000;
/** What work is averaged over, in s. A surge that this is blind to costs two credits at most. */
const AVERAGE_S = 60;
const DEFERRABLE = 3;
/** Recovery is when half of the capacity is there. */
const HALF = 0.5;

class Account {
  readonly config: LedgerConfig;
  readonly ledger: Ledger;
  readonly glide: Glide;
  readonly forecaster = new Forecaster();
  readonly keeper = new ZoneKeeper();
  /** Monotonic ms of the newest sample's arrival; null: there was none. */
  receivedAt: number | null = null;
  /** Between two samples that were new, in ms; and when the last of them was taken. */
  #interval = 0;
  #observedAt = Number.NaN;
  /** Jobs that wait outside, and when that was read (monotonic ms). */
  #jobs = 0;
  #jobsAt = Number.NEGATIVE_INFINITY;
  readonly received = { accepted: 0, repeated: 0, quarantined: 0, moved: 0 };
  readonly #instances: number;
  view: LedgerView;

  constructor(config: LedgerConfig, work: WorkLog, learned: Learned | null, instances: number) {
    this.config = config;
    this.#instances = instances;
    this.ledger = new Ledger(config, work, learned);
    this.glide = new Glide(config);
    this.view = {
      config,
      estimate: null,
      learned: this.ledger.learned,
      spend: 0,
      work: 0,
      backlog: 0,
      zone: 'GREEN',
      forecast: { burnFast: 0, burnSlow: 0, exhaustion: Number.POSITIVE_INFINITY, recovery: 0 },
      verdict: { fits: true },
      missing: 'never',
      sampleAgeMs: null,
      received: this.received,
    };
  }

  tick(now: number, critical: number, other: number, demand: Demand): void {
    const { config, ledger } = this;
    const { kappa, background } = ledger;
    const estimate = ledger.estimate(now);
    const missing = this.#missing(now);
    const inputs = { kappa, kappaUpper: ledger.kappaUpper(now), background, critical };
    const isKnown = estimate !== null && missing === '';
    const budget = isKnown ? this.glide.tick(now, { ...inputs, estimate }) : this.glide.baseline(now, inputs);
    // What the other instances spend is background here; but none takes more than its share.
    if (this.#instances > 1) budget.work = Math.min(budget.work, budget.spend / inputs.kappaUpper / this.#instances);
    if (!isKnown && config.onMissing === 'open') budget.work = Number.POSITIVE_INFINITY;
    if (!isKnown && config.onMissing === 'closed') budget.work = 0;
    const earn = config.earn ?? 0;
    const live = kappa * critical + background;
    const drain = live + kappa * other - earn;
    const known = estimate ?? { balance: 0, lower: 0, sigma: 0 };
    const backlog = (kappa * (demand.backlogMs + this.#outsideMs(now, demand))) / 1000;
    const forecast = this.forecaster.tick(now, drain, known, config.reserve, HALF * config.capacity);
    this.view = {
      config,
      estimate,
      learned: ledger.learned,
      spend: budget.spend,
      work: budget.work,
      backlog,
      forecast,
      // What is not known does not get better.
      zone: isKnown
        ? this.keeper.tick(now, {
            lower: known.lower / config.capacity,
            reserve: config.reserve / config.capacity,
            exhaustion: forecast.exhaustion,
          })
        : this.keeper.zone,
      verdict: isKnown
        ? feasibility({
            spendable: Math.max(0, known.lower - config.reserve),
            earn,
            live,
            backlog,
            backlogRate: kappa * Math.max(other, 1),
          })
        : { fits: true },
      missing,
      sampleAgeMs: ledger.anchoredAt === null ? null : now - ledger.anchoredAt,
      received: this.received,
    };
  }

  observe(sample: Sample, now: number): void {
    this.receivedAt = now;
    const outcome = this.ledger.observe(sample);
    this.received[outcome]++;
    if (outcome !== 'accepted') return;
    const since = sample.observedAt - this.#observedAt;
    this.#observedAt = sample.observedAt;
    if (since > 0) this.#interval += (since - this.#interval) * (this.#interval === 0 ? 1 : PERIOD_FOLLOW);
  }

  /** How often there is something new. */
  get #period(): number {
    return Math.max(this.config.period, Math.min(this.#interval, PERIOD_MAX_MS));
  }

  /** So many jobs wait outside the proxy. */
  observeBacklog(jobs: number, now: number): void {
    this.#jobs = Math.max(0, jobs);
    this.#jobsAt = now;
  }

  /** What they will cost, in ms; 0 when nothing has been heard of them for long. */
  #outsideMs(now: number, { costOf }: Demand): number {
    const { backlog } = this.config;
    if (backlog === null || now - this.#jobsAt > STALE_PERIODS * backlog.period) return 0;
    return this.#jobs * costOf(backlog.class);
  }

  #missing(now: number): LedgerView['missing'] {
    const { anchoredAt, suspects } = this.ledger;
    if (anchoredAt === null) return 'never';
    if (suspects > 0) return 'suspect';
    return now - (this.receivedAt ?? anchoredAt) > STALE_PERIODS * this.#period ? 'stale' : '';
  }
}

/** Tokens: ms of work that may start, how they grow (ms per ms: servers at work), and whether deferrable work waits anyway. */
class Bucket {
  tokens = 0;
  rate = Number.POSITIVE_INFINITY;
  holdsDeferrable = false;

  isOpenFor(rank: number): boolean {
    if (this.rate === Number.POSITIVE_INFINITY) return true;
    return this.tokens > 0 && !(rank === DEFERRABLE && this.holdsDeferrable);
  }

  refill(elapsedMs: number): void {
    if (this.rate !== Number.POSITIVE_INFINITY)
      this.tokens = Math.min(this.rate * BURST_MS, Math.max(this.tokens, -DEBT_MS) + this.rate * elapsedMs);
  }

  follow({ rate, holdsDeferrable }: Bucket): void {
    if (rate === Number.POSITIVE_INFINITY) this.tokens = 0;
    this.rate = rate;
    this.holdsDeferrable = holdsDeferrable;
  }
}

export class HostCredits {
  /** What it was made from. */
  readonly key: string;
  readonly #work = new WorkLog();
  readonly #accounts: readonly Account[];
  readonly #demand: () => Demand;
  /** How many times faster than life time runs for it. */
  readonly #pace: number;
  /** Work since the start, in s: critical, and all other. */
  #criticalSum = 0;
  #otherSum = 0;
  /** Servers at work on average. */
  #critical = 0;
  #other = 0;
  #tickedAt = -1;
  #atLast = { critical: 0, other: 0 };
  /** What may start now of work that is not critical; and what might, if ledgers that warn were to enforce. */
  readonly #allowed = new Bucket();
  readonly #advised = new Bucket();
  #refilledAt = -1;

  /**
   * `learned` before a restart, by ledger. `instances`: so many proxies stand before the host; each has its share of the
   * budget, and takes what the others spend for background. `pace`: its time runs so many times faster than the clock, for
   * rehearsals; arguments are by the clock, and everything else here and in the views is in its own time.
   */
  constructor(
    configs: readonly LedgerConfig[],
    demand: () => Demand,
    {
      learned = {},
      instances = 1,
      key = '',
      pace = 1,
    }: { learned?: Readonly<Record<string, Learned>>; instances?: number; key?: string; pace?: number } = {},
  ) {
    this.key = key;
    this.#pace = pace;
    this.#accounts = configs.map((config) => new Account(config, this.#work, learned[config.name] ?? null, instances));
    this.#demand = demand;
  }

  /** May something of this rank (0 is critical) start now? */
  isOpenFor(rank: number): boolean {
    return rank === 0 || this.#allowed.isOpenFor(rank);
  }

  /** Would it not, if ledgers that only warn were to enforce? */
  warns(rank: number): boolean {
    return rank > 0 && !this.#advised.isOpenFor(rank);
  }

  /** Work of this rank, in ms of one server at what it takes in calm; negative: less than was thought. */
  charge(rank: number, msByTheClock: number): void {
    const ms = this.#pace * msByTheClock;
    if (rank === 0) this.#criticalSum += ms / 1000;
    else {
      this.#otherSum += ms / 1000;
      this.#allowed.tokens -= ms;
      this.#advised.tokens -= ms;
    }
  }

  /** A sample of the balance of a ledger has come. */
  observe(name: string, sample: Sample, now: number): void {
    const account = this.#accounts.find(({ config }) => config.name === name);
    account?.observe({ ...sample, observedAt: this.#pace * sample.observedAt }, this.#pace * now);
  }

  /** A sample of its spend rate, in units per second, between two times. */
  observeSpend(name: string, from: number, to: number, rate: number): void {
    const account = this.#accounts.find(({ config }) => config.name === name);
    account?.ledger.observeSpend(this.#pace * from, this.#pace * to, rate);
  }

  /** So many jobs of its class wait outside the proxy, by the reading of this ledger. */
  observeBacklog(name: string, jobs: number, now: number): void {
    this.#accounts.find(({ config }) => config.name === name)?.observeBacklog(jobs, this.#pace * now);
  }

  /** Everything that time brings. Called often; most of it is done once a second. */
  tick(nowByTheClock: number): void {
    const now = this.#pace * nowByTheClock;
    if (now - this.#tickedAt >= TICK_MS || this.#tickedAt < 0) this.#tickSecond(now);
    const elapsed = this.#refilledAt < 0 ? 0 : now - this.#refilledAt;
    this.#refilledAt = now;
    this.#allowed.refill(elapsed);
    this.#advised.refill(elapsed);
  }

  #tickSecond(now: number): void {
    const seconds = this.#tickedAt < 0 ? 0 : (now - this.#tickedAt) / 1000;
    if (seconds > 0) {
      const share = 1 - Math.exp(-seconds / AVERAGE_S);
      this.#critical += ((this.#criticalSum - this.#atLast.critical) / seconds - this.#critical) * share;
      this.#other += ((this.#otherSum - this.#atLast.other) / seconds - this.#other) * share;
    }
    this.#tickedAt = now;
    this.#atLast = { critical: this.#criticalSum, other: this.#otherSum };
    this.#work.add(now, this.#criticalSum + this.#otherSum);
    const { backlogMs, costOf } = this.#demand();
    const demand = { backlogMs: this.#pace * backlogMs, costOf: (name: string) => this.#pace * costOf(name) };
    const found = { enforce: new Bucket(), warn: new Bucket() };
    for (const account of this.#accounts) {
      account.tick(now, Math.max(0, this.#critical), Math.max(0, this.#other), demand);
      const { config, view } = account;
      if (config.mode === 'observe' || config.effect === 'bill') continue;
      const bucket = found[config.mode];
      bucket.rate = Math.min(bucket.rate, view.work);
      bucket.holdsDeferrable ||= view.missing !== '' && config.onMissing !== 'open';
    }
    this.#allowed.follow(found.enforce);
    this.#advised.follow(found.warn);
  }

  /** Servers' worth of work that is not critical that may be done at the moment; infinite: not limited. */
  get rate(): number {
    return this.#allowed.rate;
  }

  get ledgers(): readonly LedgerView[] {
    return this.#accounts.map(({ view }) => view);
  }

  /** The worst of its ledgers that hold something back, or would; '' when none does. */
  get zone(): Zone | '' {
    const acting = this.ledgers.filter(({ config: { mode, effect } }) => mode !== 'observe' && effect !== 'bill');
    return (
      (['BLACK', 'RED', 'AMBER', 'GREEN'] as const).find((zone) => acting.some((each) => each.zone === zone)) ?? ''
    );
  }
}
