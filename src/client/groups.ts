/**
 * Who is a member of the groups that rules of `auth.hba` name (`+group`), as a database tells it. Made by app, asked by client/hba.
 *
 * The one idea: a login waits for no question; what is known is a minute old at most, and while nothing is known nobody is let in by it.
 */

const MEMBERS = `
  WITH RECURSIVE member (of, role) AS (
    SELECT rolname, oid FROM pg_catalog.pg_roles WHERE rolname = ANY ($1)
    UNION
    SELECT member.of, below.member FROM member JOIN pg_catalog.pg_auth_members below ON below.roleid = member.role)
  SELECT member.of, rolname FROM member JOIN pg_catalog.pg_roles ON pg_roles.oid = member.role`;

export type AskMembers = (sql: string, values: readonly string[]) => Promise<(string | null)[][]>;

export class Groups {
  #groups: readonly string[] = [];
  #members: ReadonlySet<string> | null = null;
  readonly #ask: AskMembers;
  readonly #onProblem: (thrown: unknown) => void;

  constructor(ask: AskMembers, onProblem: (thrown: unknown) => void) {
    this.#ask = ask;
    this.#onProblem = onProblem;
  }

  /** Null: not known yet. */
  readonly isMember = (user: string, group: string): boolean | null =>
    this.#members === null ? null : this.#members.has(keyOf(user, group));

  /** These must be known from here on. */
  configure(groups: readonly string[]): void {
    if (groups.some((group) => !this.#groups.includes(group))) this.#members = null;
    this.#groups = groups;
    void this.refresh();
  }

  async refresh(): Promise<void> {
    const groups = this.#groups;
    if (groups.length === 0) return;
    try {
      const rows = await this.#ask(MEMBERS, [arrayOf(groups)]);
      if (groups === this.#groups) this.#members = new Set(rows.map(([group, user]) => keyOf(user!, group!)));
    } catch (thrown) {
      this.#onProblem(thrown); // What was known goes on to hold.
    }
  }
}

const keyOf = (user: string, group: string) => `${user}\0${group}`;

/** As an array is written in SQL. */
function arrayOf(names: readonly string[]): string {
  return `{${names.map((name) => `"${name.replaceAll(/[\\"]/g, '\\$&')}"`).join()}}`;
}
