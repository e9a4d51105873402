/** util/glob: what fits a pattern, whatever the text. */
import fc from 'fast-check';
import t from 'tap';
import { globOf } from '../../src/util/glob.ts';

t.test('a pattern takes what the regular expression of it takes', async (t) => {
  const word = fc.array(fc.constantFrom('a', 'b', '*'), { maxLength: 8 }).map((letters) => letters.join(''));
  fc.assert(
    fc.property(word, word, (pattern, text) => {
      const expected = new RegExp(`^${pattern.replaceAll('*', '.*')}$`).test(text);
      return globOf(pattern)(text) === expected;
    }),
    { numRuns: 5_000 },
  );
  t.ok(globOf('api-*.v?')('api-\n.v?'));
  t.notOk(globOf('api-*.v?')('api-1xv?'));
});
