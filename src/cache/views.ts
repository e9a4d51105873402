/**
 * The tables that views stand for. A view hides what its query does: the built-in functions that it calls are not even in pg_depend, so its text
 * is parsed and judged like a statement (cache.md, trap 15). One for each reading of the catalogue; asked by cache/cache.
 *
 * The one idea: a view is as good as everything in it, down to the tables.
 */
import type { Parser } from '../sql/parser.ts';
import type { Reading } from '../sql/reading.ts';
import type { Relation, Relations } from '../sql/relations.ts';

/** Null: not known yet. A text: why it is not to be kept. */
type Bases = readonly Relation[] | string | null;

export class Views {
  readonly #relations: Relations;
  readonly #parse: Parser['parse'];
  readonly #readings = new Map<number, Reading | string | null>();

  constructor(relations: Relations, parse: Parser['parse']) {
    this.#relations = relations;
    this.#parse = parse;
  }

  /** All tables that are read by whoever reads these. */
  basesOf(named: readonly Relation[]): Bases {
    const found = new Map<number, Relation>();
    const waiting = [...named];
    let isKnown = true;
    while (waiting.length > 0) {
      const relation = waiting.pop()!;
      if (found.has(relation.oid)) continue;
      found.set(relation.oid, relation);
      if (relation.hasRowSecurity) return `${relation.name} has row level security`;
      if (relation.kind === 'foreign') return `${relation.name} is a foreign table`;
      if (relation.kind !== 'view') continue;
      const inside = this.#inside(relation);
      if (typeof inside === 'string') return inside;
      if (inside === null) isKnown = false;
      else waiting.push(...inside);
    }
    return isKnown ? [...found.values()] : null;
  }

  /** What the query of a view reads. */
  #inside(view: Relation): Bases {
    const reading = this.#readings.get(view.oid);
    if (reading === undefined) {
      this.#readings.set(view.oid, null);
      this.#parse(view.definition, (syntax) => {
        this.#readings.set(view.oid, syntax?.reading ?? `view ${view.name} cannot be parsed`);
      });
      return null;
    }
    if (reading === null || typeof reading === 'string') return reading;
    const why = reading.refusal || this.#relations.refusalOf(reading);
    if (why !== '') return `in view ${view.name}: ${why}`;
    const found: Relation[] = [];
    for (const each of reading.relations) {
      // The catalogue was read without a search path, so all names are qualified.
      const relation = this.#relations.resolve(each, []);
      if (typeof relation === 'string') return `in view ${view.name}: ${relation}`;
      found.push(relation);
    }
    return found;
  }
}
