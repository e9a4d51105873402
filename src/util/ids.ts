/** Numbers by which people name clients and servers, of one sequence, so that none means two things. */
let last = 0;

export function nextId(): number {
  return ++last;
}
