declare const RUNTIME: string;
