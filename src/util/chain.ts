/**
 * A doubly linked list whose links live in its members: FIFO waiters that may leave from the middle in O(1), and LIFO
 * stacks of idle servers of which the oldest can be closed. "Each state corresponds to a list": a member is in at
 * most one chain at a time, which the assertions check.
 */
import { assert } from './errors.ts';

export interface Link<T extends Link<T>> {
  chain: Chain<T> | null;
  before: T | null;
  behind: T | null;
}

export class Chain<T extends Link<T>> {
  first: T | null = null;
  last: T | null = null;
  size = 0;

  /** Adds at the end. */
  push(member: T): void {
    assert(member.chain === null, 'a member is in one chain only');
    member.chain = this;
    member.before = this.last;
    member.behind = null;
    if (this.last === null) this.first = member;
    else this.last.behind = member;
    this.last = member;
    this.size++;
  }

  /** Takes the first (oldest) member out, or null. */
  shift(): T | null {
    const member = this.first;
    if (member !== null) this.remove(member);
    return member;
  }

  /** Takes the last (youngest) member out, or null. */
  pop(): T | null {
    const member = this.last;
    if (member !== null) this.remove(member);
    return member;
  }

  /** Takes `member` out; it must be in this chain. */
  remove(member: T): void {
    assert(member.chain === this, 'only a member can leave');
    if (member.before === null) this.first = member.behind;
    else member.before.behind = member.behind;
    if (member.behind === null) this.last = member.before;
    else member.behind.before = member.before;
    member.chain = null;
    member.before = null;
    member.behind = null;
    this.size--;
  }

  *[Symbol.iterator](): Iterator<T> {
    for (let member = this.first; member !== null; ) {
      const next: T | null = member.behind; // The caller may remove the member that it is given.
      yield member;
      member = next;
    }
  }
}
