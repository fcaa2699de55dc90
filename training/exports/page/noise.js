// The noise of JAX: jax.random of the generator threefry2x32 (Salmon et al. 2011), for float32.
// A key is two unsigned 32-bit words.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];
const PARITY = 0x1bd11bda;
const LEAST = Math.fround(-1 + 2 ** -24); // the float after -1
const SQRT_2 = Math.fround(Math.SQRT2);
// Giles 2012, "Approximating the erfinv function", single precision.
const CENTRE = [2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 2.1858087e-4,
  -1.25372503e-3, -4.17768164e-3, 2.46640727e-1, 1.50140941];
const TAIL = [-2.00214257e-4, 1.00950558e-4, 1.34934322e-3, -3.67342844e-3, 5.73950773e-3,
  -7.6224613e-3, 9.43887047e-3, 1.00167406, 2.83297682];

// 20 rounds of threefry on the words (x, y).
function threefry([k, l], x, y) {
  const words = [k, l, k ^ l ^ PARITY];
  let [a, b] = [(x + k) | 0, (y + l) | 0];
  for (let group = 0; group < 5; group++) {
    for (const turn of ROTATIONS[group % 2]) {
      a = (a + b) | 0;
      b = ((b << turn) | (b >>> (32 - turn))) ^ a;
    }
    a = (a + words[(group + 1) % 3]) | 0;
    b = (b + words[(group + 2) % 3] + group + 1) | 0;
  }
  return [a >>> 0, b >>> 0];
}

// jax.random.fold_in.
export const foldIn = (key, number) => threefry(key, 0, number);

// jax.random.split into two keys.
export const split = (key) => [threefry(key, 0, 0), threefry(key, 0, 1)];

// jax.random.normal of so many numbers, below 2^32.
export function normal(key, count) {
  return Float32Array.from({ length: count }, (_, index) => {
    const [high, low] = threefry(key, 0, index);
    return SQRT_2 * inverseErf(uniform(high ^ low));
  });
}

// Random bits as a float in (-1, 1): 23 bits fill [0, 1), which is stretched.
function uniform(bits) {
  return Math.max(LEAST, Math.fround((bits >>> 9) * 2 ** -22 + LEAST));
}

function inverseErf(x) {
  const w = -Math.log1p(-Math.fround(x * x));
  const polynomial = (terms, at) => terms.reduce((sum, term) => sum * at + term);
  return x * (w < 5 ? polynomial(CENTRE, w - 2.5) : polynomial(TAIL, Math.sqrt(w) - 3));
}

// The noise of a seed: where its sample starts, and the key of what the sampler draws later.
export function start(key, seed, count) {
  const [first, later] = split(foldIn(key, seed));
  return { noise: normal(first, count), later };
}
