/** server/reads: which shapes are known to be short. */
import t from 'tap';
import { ReadBook, ReadCost } from '../../src/server/reads.ts';

function costOf(samples: readonly (readonly [ms: number, bytes: number])[]): ReadCost {
  const cost = new ReadCost(1);
  for (const [ms, bytes] of samples) cost.add(ms, bytes);
  return cost;
}

const short = (count: number) => Array.from({ length: count }, () => [0.2, 100] as const);

t.test('nothing is known before twenty samples', async (t) => {
  t.notOk(costOf(short(19)).isSmall);
  t.ok(costOf(short(20)).isSmall);
});

t.test('one in twenty may be slow, one in a hundred large', async (t) => {
  t.ok(costOf([...short(19), [50, 100]]).isSmall);
  t.notOk(costOf([...short(18), [50, 100], [50, 100]]).isSmall);
  t.ok(costOf([...short(99), [0.2, 100_000]]).isSmall);
  t.notOk(costOf([...short(98), [0.2, 100_000]]).isSmall);
});

t.test('a shape that changes its ways is found out, however long it has been short', async (t) => {
  const cost = costOf(short(100_000));
  let slow = 0;
  for (; cost.isSmall; slow++) cost.add(50, 100);
  t.ok(slow < 60, `${slow} slow ones`);
  t.ok(cost.meanMs > 20, 'the mean follows at once');
  let fast = 0;
  for (; !cost.isSmall; fast++) cost.add(0.2, 100);
  t.ok(fast < 1000, `${fast} fast ones`);
});

t.test('a shape has one cost', async (t) => {
  const book = new ReadBook();
  book.of(1).add(1, 1);
  t.equal(book.of(1), book.of(1));
  t.not(book.of(1), book.of(2));
});
