/**
 * What a statement reads, and whether its answer depends on nothing but that and its session's settings: the first half of
 * the verdict of the read cache, from the parse tree alone. Called by sql/parser-worker; the second half is sql/relations.
 *
 * The one idea: everything is refused that is not known. Nodes of the tree, functions, types and operators are all on lists, or
 * judged by the catalogue; what a new version of Postgres brings is refused until somebody has thought about it.
 *
 * The tree is that of libpg_query: `{ NodeType: { … } }`, but larg, rarg, relation, withClause and their like stand bare.
 */

/** A relation as it is named; schema '' where none is given. */
export interface Named {
  schema: string;
  name: string;
}

export interface Reading {
  /** Why its answer is not to be kept; '': nothing in its text speaks against it. */
  refusal: string;
  relations: Named[];
  /** Names of functions, types and operators, as they stand: 'f' or 'schema.f'; pg_catalog is left out. */
  functions: string[];
  types: string[];
  operators: string[];
  /** What stands behind a dot, `t.c`: a column, or a function of one argument in its other spelling. */
  members: string[];
}

type Node = { readonly [key: string]: unknown };

/** Nodes whose parts are all that there is to look at. */
const plain = new Set(
  `A_ArrayExpr A_Const A_Expr A_Indices A_Indirection A_Star Alias BitString BoolExpr Boolean BooleanTest CaseExpr CaseWhen
   CoalesceExpr CollateClause ColumnRef CommonTableExpr Float FuncCall GroupingFunc GroupingSet Integer JoinExpr
   JsonAggConstructor JsonArgument JsonArrayAgg JsonArrayConstructor JsonArrayQueryConstructor JsonBehavior JsonFormat
   JsonFuncExpr JsonIsPredicate JsonKeyValue JsonObjectAgg JsonObjectConstructor JsonOutput JsonParseExpr JsonReturning
   JsonScalarExpr JsonSerializeExpr JsonTable JsonTableColumn JsonTablePathSpec JsonValueExpr List MinMaxExpr NamedArgExpr
   NullTest ParamRef RangeFunction RangeSubselect RangeTableFunc RangeTableFuncCol RangeVar ResTarget RowExpr SelectStmt SortBy
   String SubLink TypeCast TypeName WindowDef WithClause`.split(/\s+/),
);

/** Columns that tell where a row lies rather than what is in it. */
const physical = new Set(['ctid', 'cmin', 'cmax', 'xmax']);

/** Deeper trees are refused: this walk is recursive. */
const DEPTH_MAX = 500;

/** Reads the tree of a whole text. */
export function readingOf(tree: unknown): Reading {
  const reading: Reading = { refusal: '', relations: [], functions: [], types: [], operators: [], members: [] };
  const { stmts } = tree as { stmts?: { stmt?: Node }[] };
  const select = stmts?.length === 1 ? stmts[0]!.stmt?.SelectStmt : undefined;
  if (select === undefined) reading.refusal = 'it is not one SELECT';
  else new Walk(reading).select(select as Node, new Set(), 0);
  for (const key of ['functions', 'types', 'operators', 'members'] as const) reading[key] = [...new Set(reading[key])];
  return reading;
}

class Walk {
  readonly #reading: Reading;

  constructor(reading: Reading) {
    this.#reading = reading;
  }

  #refuse(why: string): void {
    this.#reading.refusal ||= why;
  }

  /** `ctes`: the names that stand for a WITH query here. */
  select(select: Node, ctes: ReadonlySet<string>, depth: number): void {
    if (select.lockingClause !== undefined) this.#refuse('it locks rows');
    if (select.intoClause !== undefined) this.#refuse('it makes a table');
    const { withClause, ...rest } = select;
    this.#fields(rest, this.#with(withClause as Node | undefined, ctes, depth), depth);
  }

  /** A query of WITH sees those before it, of WITH RECURSIVE all. Gives what the statement itself sees. */
  #with(clause: Node | undefined, outer: ReadonlySet<string>, depth: number): ReadonlySet<string> {
    if (clause === undefined) return outer;
    const queries = ((clause.ctes ?? []) as { CommonTableExpr: Node }[]).map((each) => each.CommonTableExpr);
    const names = queries.map((query) => String(query.ctename));
    const all = new Set([...outer, ...names]);
    const seen = new Set(outer);
    for (const [index, query] of queries.entries()) {
      this.#fields(query, clause.recursive === true ? all : seen, depth + 1);
      // In place, as later queries only see more: no walk of an earlier one is under way.
      seen.add(names[index]!);
    }
    return all;
  }

  #fields(node: Node, ctes: ReadonlySet<string>, depth: number): void {
    if (depth > DEPTH_MAX) return this.#refuse('it is nested too deeply');
    for (const [key, value] of Object.entries(node)) this.#value(key, value, ctes, depth + 1);
  }

  #value(key: string, value: unknown, ctes: ReadonlySet<string>, depth: number): void {
    if (typeof value !== 'object' || value === null) return;
    if (Array.isArray(value)) {
      for (const each of value) this.#fields(each as Node, ctes, depth);
      return;
    }
    const node = value as Node;
    if (/^[A-Z]/.test(key)) {
      if (!plain.has(key)) return this.#refuse(`it contains ${key}`);
      this.#look(key, node, ctes);
    }
    // What stands bare: the sides of UNION, the type of a cast.
    if (key === 'SelectStmt' || key === 'larg' || key === 'rarg') {
      if (isSelect(node)) return this.select(node, ctes, depth);
    }
    if (key === 'typeName' || key === 'TypeName') this.#type(node);
    this.#fields(node, ctes, depth);
  }

  #look(type: string, node: Node, ctes: ReadonlySet<string>): void {
    switch (type) {
      case 'RangeVar': {
        const schema = (node.schemaname as string | undefined) ?? '';
        const name = String(node.relname);
        if (schema === '' && ctes.has(name)) break;
        if (node.catalogname !== undefined) this.#refuse('it names a database');
        this.#reading.relations.push({ schema, name });
        break;
      }
      case 'FuncCall': {
        const name = dotted(node.funcname);
        // Measured from midnight of the current day.
        if (name === 'age' && ((node.args ?? []) as unknown[]).length < 2)
          this.#refuse('it asks for the age of a time');
        this.#reading.functions.push(name);
        break;
      }
      case 'A_Expr':
        this.#reading.operators.push(dotted(node.name));
        break;
      case 'SortBy':
        if (node.useOp !== undefined) this.#reading.operators.push(dotted(node.useOp));
        break;
      case 'SubLink':
        if (node.operName !== undefined) this.#reading.operators.push(dotted(node.operName));
        break;
      case 'ColumnRef': {
        const fields = stringsOf(node.fields);
        const last = fields.at(-1) ?? '';
        if (physical.has(last)) this.#refuse(`it reads ${last}`);
        this.#reading.members.push(...fields.slice(1));
        break;
      }
      case 'A_Indirection':
        this.#reading.members.push(...stringsOf(node.indirection));
        break;
      default:
    }
  }

  #type(node: Node): void {
    this.#reading.types.push(dotted(node.names));
  }
}

/** JoinExpr has a larg and a rarg as well: nodes with a type. */
function isSelect(node: Node): boolean {
  return !Object.keys(node).some((key) => /^[A-Z]/.test(key));
}

function stringsOf(parts: unknown): string[] {
  return ((parts ?? []) as Node[]).map((part) => (part.String as { sval?: string } | undefined)?.sval ?? '');
}

/** A name of one or more parts, dotted, without pg_catalog. */
function dotted(parts: unknown): string {
  const names = stringsOf(parts);
  return (names[0] === 'pg_catalog' ? names.slice(1) : names).join('.');
}
