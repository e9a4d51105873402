/**
 * Which of several hosts is the primary: the one place that decides. Fed by server/cluster with what probes have found.
 *
 *     found, lost ──▶ roles ──▶ primary, or nobody
 *
 * The one idea: a promotion begins a new timeline, and timelines only grow ("Continuous Archiving", Timelines). So the highest
 * that was ever seen of a cluster (by its system identifier) tells a primary from one that has been replaced and does not know
 * it; of two with the same one, that which was there first is it. Who is refused is never written to.
 *
 * Invariants: pure; the timeline of the primary never falls, and its system identifier never changes; what is known is kept over
 * a restart by the caller (`lineage`).
 */

/** What a probe has learned of a host. */
export interface Finding {
  isInRecovery: boolean;
  systemId: string;
  /** Of a primary; of a standby that of what it streams, 0: it does not, or the control user may not know (pg_monitor). */
  timeline: number;
  /** ms that a standby is behind; null: not known, or a primary. */
  lagMs: number | null;
  /** Bytes of log: of a primary what was written, of a standby what it has replayed. */
  lsn: number;
  /** Monotonic ms when it was asked. */
  askedAt: number;
}

/** What is kept: the last primary. */
export interface Lineage {
  systemId: string;
  timeline: number;
  address: string;
}

export type Role =
  | 'primary'
  | 'standby'
  /** It says that it is a primary, and must not be written to. */
  | 'refused'
  | 'unreachable'
  /** Not asked yet. */
  | 'unknown';

export const roles: readonly Role[] = ['primary', 'standby', 'refused', 'unreachable', 'unknown'];

export interface HostRole {
  role: Role;
  /** Why it is refused, or cannot be reached. */
  why: string;
  finding: Finding | null;
}

export class LineageBook {
  readonly #roles = new Map<string, HostRole>();
  /** The last primary; null: there was none. */
  lineage: Lineage | null;

  constructor(addresses: readonly string[], known: Lineage | null) {
    for (const address of addresses) this.#roles.set(address, { role: 'unknown', why: '', finding: null });
    this.lineage = known;
  }

  get roles(): ReadonlyMap<string, HostRole> {
    return this.#roles;
  }

  /** The address of the primary; null: there is none at present. */
  get primary(): string | null {
    for (const [address, { role }] of this.#roles) if (role === 'primary') return address;
    return null;
  }

  found(address: string, finding: Finding): void {
    this.#set(address, { role: finding.isInRecovery ? 'standby' : 'unknown', why: '', finding });
  }

  lost(address: string, why: string): void {
    this.#set(address, { role: 'unreachable', why, finding: null });
  }

  /** It answers, and will not say what it is: what was known still holds. */
  blind(address: string, why: string): void {
    const known = this.#roles.get(address);
    if (known !== undefined)
      this.#set(address, { ...known, role: known.finding === null ? 'unknown' : known.role, why });
  }

  #set(address: string, role: HostRole): void {
    if (!this.#roles.has(address)) return;
    this.#roles.set(address, role);
    this.#decide();
  }

  #decide(): void {
    const claims = [...this.#roles].filter(([, { finding }]) => finding !== null && !finding.isInRecovery) as [
      string,
      HostRole & { finding: Finding },
    ][];
    // Everybody is of the first cluster that was seen.
    const systemId = this.lineage?.systemId ?? claims[0]?.[1].finding.systemId;
    for (const [address, of] of this.#roles) {
      if (of.finding === null || systemId === undefined || of.finding.systemId === systemId) continue;
      this.#roles.set(address, {
        ...of,
        role: 'refused',
        why: `its system identifier is ${of.finding.systemId}, not ${systemId}: it is another database cluster`,
      });
    }
    const own = claims.filter(([, { finding }]) => finding.systemId === systemId);
    const [best] = own.filter(([address, { finding }]) => this.#mayLead(address, finding)).sort(byTimeline);
    if (best !== undefined)
      this.lineage = { systemId: systemId!, timeline: best[1].finding.timeline, address: best[0] };
    for (const [address, of] of own) {
      const isBest = address === best?.[0];
      this.#roles.set(address, {
        ...of,
        role: isBest ? 'primary' : 'refused',
        why: isBest ? '' : this.#whyNot(address, of.finding, best?.[0]),
      });
    }
  }

  #mayLead(address: string, { timeline }: Finding): boolean {
    const { lineage } = this;
    if (lineage === null || timeline > lineage.timeline) return true;
    if (timeline < lineage.timeline) return false;
    return address === lineage.address || !this.#roles.has(lineage.address);
  }

  #whyNot(address: string, { timeline }: Finding, best: string | undefined): string {
    const { lineage } = this;
    if (best !== undefined && timeline === this.#roles.get(best)!.finding!.timeline)
      return `${best} is the primary on the same timeline ${timeline}: two were promoted`;
    if (lineage !== null && timeline === lineage.timeline)
      return `${lineage.address} was the primary on the same timeline ${timeline}; take that out of hosts if it is gone for good`;
    return `its timeline ${timeline} has ended: ${best ?? `${lineage?.timeline} was seen, on ${lineage?.address}`} came after it, and ${address} does not know`;
  }
}

/** Highest first; among equals the order of the configuration. */
function byTimeline(a: [string, { finding: Finding }], b: [string, { finding: Finding }]): number {
  return b[1].finding.timeline - a[1].finding.timeline;
}
