'use strict';
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Light, dark, or what the system says.
  const theme = document.getElementById('theme');
  const system = matchMedia('(prefers-color-scheme: dark)');
  theme.addEventListener('click', () => {
    const now = document.documentElement.style.colorScheme || (system.matches ? 'dark' : 'light');
    document.documentElement.style.colorScheme = now === 'dark' ? 'light' : 'dark';
  });
  theme.hidden = false;

  // Rows that open.
  const toggle = (body, open) => {
    const [, detail] = body.rows;
    const show = open ?? detail.hidden;
    detail.hidden = !show;
    body.classList.toggle('open', show);
    body.querySelector('.opener').setAttribute('aria-expanded', show);
  };
  for (const body of all('tbody.opens')) {
    body.rows[0].addEventListener('click', event => {
      if (!event.target.closest('a, input')) toggle(body);
    });
  }

  // Sorting by a column: numbers falling first, texts rising first.
  const key = (body, column) => {
    const cell = body.rows[0].cells[column];
    const value = cell.dataset.v;
    return value === undefined ? cell.textContent.trim() : value === '' ? null : Number(value);
  };
  for (const table of all('table.data')) {
    all('th button', table).forEach(button => button.addEventListener('click', () => {
      const head = button.closest('th');
      const column = head.cellIndex;
      const numeric = head.classList.contains('n');
      const was = head.getAttribute('aria-sort');
      const falling = was ? was === 'ascending' : numeric;
      all('th', table).forEach(th => th.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', falling ? 'descending' : 'ascending');
      const bodies = [...table.tBodies].map(body => [key(body, column), body]);
      bodies.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const order = typeof a === 'number' ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return falling ? -order : order;
      });
      const shown = [...table.tBodies].filter(body => !body.classList.contains('more')).length;
      bodies.forEach(([, body], i) => {
        body.classList.toggle('more', i >= shown);
        table.append(body);
      });
    }));
  }

  // Searching, and showing all rows.
  for (const tools of all('.tools[data-for]')) {
    const table = document.getElementById(tools.dataset.for);
    const field = tools.querySelector('input');
    const found = tools.querySelector('.found');
    field?.addEventListener('input', () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let hits = 0;
      for (const body of table.tBodies) {
        const text = body.rows[0].textContent.toLowerCase();
        const hit = words.every(word => text.includes(word));
        hits += hit;
        body.classList.toggle('hit', words.length > 0 && hit);
        body.classList.toggle('miss', !hit);
      }
      found.textContent = words.length ? `${hits} of ${table.tBodies.length}` : '';
    });
  }
  for (const button of all('button.all')) {
    button.addEventListener('click', () => {
      document.getElementById(button.dataset.for).classList.add('all');
      button.parentElement.hidden = true;
    });
  }

  for (const button of all('.copyable button')) {
    button.hidden = !navigator.clipboard;
    button.addEventListener('click', async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector('pre').textContent);
      button.textContent = 'Copied';
      setTimeout(() => { button.textContent = 'Copy'; }, 1500);
    });
  }
})();
