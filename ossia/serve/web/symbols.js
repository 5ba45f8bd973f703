// What TeX's commands stand for.

const pairs = (text) => {
  const found = text.trim().split(/\s+/);
  return new Map(found.flatMap((name, n) => (n % 2 ? [] : [[name, found[n + 1]]])));
};

// Letters and other symbols that are written like one.
export const LETTERS = pairs(`
  alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι
  kappa κ lambda λ mu μ nu ν xi ξ omicron ο pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ
  upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ
  Upsilon Υ Phi Φ Psi Ψ Omega Ω infty ∞ partial ∂ nabla ∇ hbar ℏ ell ℓ Re ℜ Im ℑ aleph ℵ wp ℘
  emptyset ∅ varnothing ∅ forall ∀ exists ∃ nexists ∄ top ⊤ bot ⊥ angle ∠ triangle △ dots … ldots …
  cdots ⋯ vdots ⋮ ddots ⋱ imath ı jmath ȷ square □ blacksquare ■ Box □ degree ° prime ′ checkmark ✓
  dotsc … dotsb ⋯ dagger † ddagger ‡ sharp ♯ flat ♭ surd √ complement ∁
`);

export const OPERATORS = pairs(`
  times × div ÷ cdot ⋅ pm ± mp ∓ ast ∗ star ⋆ circ ∘ bullet ∙ oplus ⊕ ominus ⊖ otimes ⊗ odot ⊙
  cup ∪ cap ∩ setminus ∖ wedge ∧ land ∧ vee ∨ lor ∨ neg ¬ lnot ¬ le ≤ leq ≤ leqslant ⩽ ge ≥ geq ≥
  geqslant ⩾ ne ≠ neq ≠ ll ≪ gg ≫ approx ≈ sim ∼ simeq ≃ cong ≅ equiv ≡ propto ∝ in ∈ notin ∉ ni ∋
  subset ⊂ supset ⊃ subseteq ⊆ supseteq ⊇ subsetneq ⊊ to → rightarrow → leftarrow ← gets ← mapsto ↦
  Rightarrow ⇒ Leftarrow ⇐ Leftrightarrow ⇔ leftrightarrow ↔ implies ⟹ impliedby ⟸ iff ⟺
  longrightarrow ⟶ longleftarrow ⟵ Longrightarrow ⟹ longmapsto ⟼ hookrightarrow ↪ uparrow ↑
  downarrow ↓ updownarrow ↕ nearrow ↗ searrow ↘ rightharpoonup ⇀ rightleftharpoons ⇌ mid ∣ nmid ∤
  parallel ∥ perp ⊥ vdash ⊢ models ⊨ vDash ⊨ prec ≺ succ ≻ preceq ⪯ succeq ⪰ asymp ≍ doteq ≐
  triangleq ≜ coloneqq ≔ colon : lt < gt > backslash \\ vert | Vert ‖ lvert | rvert | lVert ‖ rVert ‖
  langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ lbrace { rbrace } lbrack [ rbrack ] therefore ∴
  because ∵ amalg ⨿ uplus ⊎ sqcup ⊔ sqcap ⊓ ltimes ⋉ rtimes ⋊ bowtie ⋈ leadsto ⇝ nsubseteq ⊈
  lesssim ≲ gtrsim ≳ nleq ≰ ngeq ≱
`);

// Large operators; those of the second table carry their limits beside them in a display too.
export const SUMS = pairs(`
  sum ∑ prod ∏ coprod ∐ bigcup ⋃ bigcap ⋂ bigoplus ⨁ bigotimes ⨂ bigodot ⨀ bigvee ⋁ bigwedge ⋀
  bigsqcup ⨆ biguplus ⨄
`);
export const INTEGRALS = pairs("int ∫ iint ∬ iiint ∭ oint ∮");

export const FUNCTIONS = new Set(
  ("sin cos tan cot sec csc sinh cosh tanh coth arcsin arccos arctan log ln lg exp deg dim ker arg " +
    "hom").split(" "),
);
export const LIMITS = new Set("lim limsup liminf max min sup inf det gcd Pr argmax argmin".split(" "));

export const SPACES = new Map([
  [",", "0.1667em"], [":", "0.2222em"], [">", "0.2222em"], [";", "0.2778em"], ["!", "-0.1667em"],
  [" ", "0.25em"], ["quad", "1em"], ["qquad", "2em"], ["enspace", "0.5em"], ["thinspace", "0.1667em"],
]);

// Accents over one symbol, and what stretches over, or under, all of it.
export const OVER = pairs(`
  hat ^ check ˇ tilde ~ acute ´ grave \` dot ˙ ddot ¨ dddot ⃛ breve ˘ bar ¯ vec → mathring ˚
  widehat ^ widetilde ~ overrightarrow → overleftarrow ← overbrace ⏞ overbracket ⎴
`);
export const UNDER = pairs("underbrace ⏟ underbracket ⎵");
export const STRETCHED = new Set(
  ("widehat widetilde overrightarrow overleftarrow overbrace overbracket underbrace " +
    "underbracket").split(" "),
);

// The first capital, small letter and digit of Unicode's alphabets, and letters that are elsewhere.
export const FONTS = {
  mathbf: [0x1d400, 0x1d41a, 0x1d7ce],
  mathit: [0x1d434, 0x1d44e, null, { h: "ℎ" }],
  mathcal: [0x1d49c, 0x1d4b6, null, {
    B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ", e: "ℯ", g: "ℊ", o: "ℴ",
  }],
  mathfrak: [0x1d504, 0x1d51e, null, { C: "ℭ", H: "ℌ", I: "ℑ", R: "ℜ", Z: "ℨ" }],
  mathbb: [0x1d538, 0x1d552, 0x1d7d8, { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" }],
  mathsf: [0x1d5a0, 0x1d5ba, 0x1d7e2],
  mathtt: [0x1d670, 0x1d68a, 0x1d7f6],
  boldsymbol: [0x1d468, 0x1d482, 0x1d7ce],
  mathrm: [null, null, null],
};
FONTS.bm = FONTS.boldsymbol;
FONTS.mathscr = FONTS.mathcal;
FONTS.mathnormal = FONTS.mathit;
FONTS.Bbb = FONTS.mathbb;

// The brackets around a matrix, and how an environment's columns are set.
export const ENVIRONMENTS = {
  matrix: ["", ""], smallmatrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"],
  Bmatrix: ["{", "}"], vmatrix: ["|", "|"], Vmatrix: ["‖", "‖"], array: ["", ""],
  cases: ["{", "", "left"], rcases: ["", "}", "left"], dcases: ["{", "", "left"],
  aligned: ["", "", "pairs"], align: ["", "", "pairs"], "align*": ["", "", "pairs"],
  alignedat: ["", "", "pairs"], split: ["", "", "pairs"], eqnarray: ["", "", "pairs"],
  "eqnarray*": ["", "", "pairs"], gathered: ["", ""], gather: ["", ""], "gather*": ["", ""],
  equation: ["", ""], "equation*": ["", ""],
};
