import { fileURLToPath } from 'node:url'
import vue from '@vitejs/plugin-vue'
import { defineConfig } from 'vitest/config'

/** Where `npm run dev` sends the API's requests. */
const service = process.env.COUPONBOOK_URL ?? 'http://127.0.0.1:8080'

export default defineConfig({
  plugins: [vue()],
  resolve: { alias: { '@': fileURLToPath(new URL('./src', import.meta.url)) } },
  define: {
    __VUE_OPTIONS_API__: false,
    __VUE_PROD_DEVTOOLS__: false,
    __VUE_I18N_FULL_INSTALL__: false,
    __VUE_I18N_LEGACY_API__: false,
    __INTLIFY_PROD_DEVTOOLS__: false,
    __INTLIFY_DROP_MESSAGE_COMPILER__: false,
  },
  build: {
    target: 'es2022',
    emptyOutDir: false, // scripts/clean.mjs does it, and leaves the file that keeps the folder in the repository
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    manifest: 'manifest.json',
    assetsInlineLimit: 0,
  },
  server: { proxy: { '/v1': service, '/docs': service, '/openapi.json': service } },
  test: { environment: 'happy-dom', include: ['test/**/*.test.ts'], restoreMocks: true },
})
